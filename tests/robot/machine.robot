*** Settings ***
Documentation     Settings, the examination of a machine, help.
Resource          resources.robot
Suite Setup       Prepare World
Suite Teardown    Clean World

*** Test Cases ***
Goal: Examine this machine.
    ${code}    ${output}    ${errors}=    Run Command    holofs doctor    ${WORLD}    ${EMPTY}    ${{[]}}
    # 0: fine, 1: warnings
    Should Be True    ${code} in (0, 1)    ${output}${errors}
    ${code}    ${output}    ${errors}=    Run Command    holofs doctor --json    ${WORLD}    ${EMPTY}    ${{[]}}
    ${found}=    Parse JSON    ${output}
    Dictionary Should Contain Key    ${found}    checks
    Refused    holofs doctor /no/such/directory    3    /no/such/directory

Goal: Each setting says where it was set.
    Step    holofs config
    Must Have    smart (default)
    Step    holofs config    0    ${EMPTY}    RCC_HOLOTREE_STRATEGY=COPY
    Must Have    copy (RCC_HOLOTREE_STRATEGY)
    Create File    ${ROBOCORP_HOME}/settings.yaml    holotree:\n${SPACE*2}restoration-strategy: copy\n
    Step    holofs config --json
    Must Be Json Response
    Step    holofs config
    Must Have    settings.yaml:2
    Create File    ${ROBOCORP_HOME}/settings.yaml    holotree:\n${SPACE*2}restoration-strategy: quick\n
    Step    holofs config    4
    Use STDERR
    Must Have    settings.yaml:2
    [Teardown]    Remove File    ${ROBOCORP_HOME}/settings.yaml

Goal: Every command explains itself.
    Step    holofs --help
    @{lines}=    Get Regexp Matches    ${STDOUT}    (?m)^.{11}([a-z]+) {2}    1
    FOR    ${command}    IN    @{lines}
        Step    holofs help ${command}
        Must Have    Examples:
        Step    holofs man ${command}
        Must Have    SYNOPSIS
    END
    FOR    ${shell}    IN    bash    zsh    fish
        Step    holofs completions ${shell}
        Must Have    mount
    END
