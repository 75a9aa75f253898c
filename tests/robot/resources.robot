*** Settings ***
Documentation     The keywords of all suites. A step runs a command; the keywords after it look at its output.
Library           OperatingSystem
Library           String
Library           Collections
Library           supporting.py

*** Keywords ***
Prepare World
    [Documentation]    A home whose library is a fixture, for the tests of one suite.
    [Arguments]    ${fixture}=basic-gz
    ${fuse}=    Fuse Is Available
    Skip If    not ${fuse}    /dev/fuse or fusermount3 is missing
    ${made}=    Make World    ${fixture}
    Set Suite Variable    ${WORLD}    ${made}
    Set Suite Variable    ${ROBOCORP_HOME}    ${made}/home

Clean World
    Run Keyword And Ignore Error    Fire And Forget    holofs unmount --all --force
    Remove World    ${WORLD}

Fire And Forget
    [Arguments]    ${command}
    ${code}    ${output}    ${errors}=    Run Command    ${command}    ${WORLD}    ${EMPTY}    ${{[]}}
    Log    ${code}\n${output}\n${errors}

Step
    [Documentation]    Runs a command, which must end with the expected exit code. Further arguments are variables.
    [Arguments]    ${command}    ${expected}=0    ${cwd}=${EMPTY}    @{variables}
    ${code}    ${output}    ${errors}=    Run Command    ${command}    ${WORLD}    ${cwd}    ${variables}
    Set Suite Variable    ${STDOUT}    ${output}
    Set Suite Variable    ${STDERR}    ${errors}
    Log    ${output}
    Log    ${errors}
    Should Be Equal As Integers    ${code}    ${expected}    ${command}\n${output}${errors}
    Use STDOUT

Use STDOUT
    Set Suite Variable    ${USED}    ${STDOUT}

Use STDERR
    Set Suite Variable    ${USED}    ${STDERR}

Must Be
    [Arguments]    ${text}
    ${used}=    Strip String    ${USED}
    Should Be Equal As Strings    ${used}    ${text}

Must Be Empty
    Must Be    ${EMPTY}

Must Have
    [Arguments]    ${text}
    Should Contain    ${USED}    ${text}

Wont Have
    [Arguments]    ${text}
    Should Not Contain    ${USED}    ${text}

Must Exist
    [Arguments]    ${path}
    Should Exist    ${path}

Wont Exist
    [Arguments]    ${path}
    Should Not Exist    ${path}

Must Be Json Response
    ${value}=    Parse JSON    ${USED}
    RETURN    ${value}

Refused
    [Documentation]    Runs a command, which must fail with a line of what and why, another of what to try, and no output.
    [Arguments]    ${command}    ${expected}    ${why}    ${cwd}=${EMPTY}
    Step    ${command}    ${expected}    ${cwd}
    Must Be Empty
    Use STDERR
    Should Match Regexp    ${USED}    ^holofs: .{10,}
    Should Contain    ${USED}    ${SPACE}${SPACE}try:${SPACE}
    Must Have    ${why}
