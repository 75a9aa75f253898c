*** Settings ***
Documentation     The variables of an environment, as `rcc holotree variables` shows them, and runs with them.
Resource          resources.robot
Suite Setup       Prepare Robot
Suite Teardown    Clean World

*** Variables ***
@{ALWAYS}    PYTHON_EXE=    CONDA_DEFAULT_ENV=rcc    CONDA_PREFIX=    CONDA_PROMPT_MODIFIER=    CONDA_SHLVL=1    PATH=
...    PYTHONHOME=    PYTHONEXECUTABLE=    PYTHONNOUSERSITE=1    TEMP=    TMP=    ROBOCORP_HOME=
...    RCC_ENVIRONMENT_HASH=    RCC_INSTALLATION_ID=    RCC_TRACKING_ALLOWED=
@{OF_ROBOT}    PYTHONPATH=    ROBOT_ROOT=    ROBOT_ARTIFACTS=
@{OF_CLOUD}    RC_API_SECRET_HOST=    RC_API_WORKITEM_HOST=    RC_API_SECRET_TOKEN=    RC_API_WORKITEM_TOKEN=
...    RC_WORKSPACE_ID=

*** Keywords ***
Prepare Robot
    Prepare World
    Write Robot    ${WORLD}/robot
    Set Suite Variable    ${ROBOT}    ${WORLD}/robot
    Step    holofs record ${ROBOCORP_HOME} --blueprint ${ROBOT}/conda.yaml -- sh ${WORLD}/build.sh

Must Have All
    [Arguments]    @{texts}
    FOR    ${text}    IN    @{texts}
        Must Have    ${text}
    END

Wont Have Any
    [Arguments]    @{texts}
    FOR    ${text}    IN    @{texts}
        Wont Have    ${text}
    END

*** Test Cases ***
Goal: See the variables of an environment without a robot.
    Step    holofs variables --space jam robot/conda.yaml
    Must Have All    @{ALWAYS}
    Wont Have Any    @{OF_ROBOT}    @{OF_CLOUD}

Goal: See the variables of an environment with a robot.
    Step    holofs variables --space robot -r robot/robot.yaml
    Must Have All    @{ALWAYS}    @{OF_ROBOT}
    Wont Have Any    GREETING=    @{OF_CLOUD}

Goal: See the variables with those of env.json too.
    Step    holofs variables --space robot robot/conda.yaml -r robot/robot.yaml -e robot/env.json
    Must Have All    @{ALWAYS}    @{OF_ROBOT}    GREETING=
    Wont Have Any    @{OF_CLOUD}

Goal: See the variables in JSON form.
    Step    holofs variables --space jam --json robot/conda.yaml
    Must Be Json Response
    Step    holofs vars --space robot --json -r robot/robot.yaml -e robot/env.json
    ${variables}=    Must Be Json Response
    Should Contain    ${{ [entry['key'] for entry in $variables] }}    ROBOT_ROOT

Goal: A shell reads the variables, also those with quotes.
    Step    source <(holofs variables -s robot -r robot/robot.yaml -e robot/env.json); echo "$GREETING, $CONDA_DEFAULT_ENV"
    Must Be    it's me, rcc

Goal: The controller decides which space is meant, as in rcc.
    Step    holofs variables --controller citests --space jam robot/conda.yaml
    Must Have    CONDA_PREFIX=
    Step    holofs list
    Must Have    rcc.citests

Goal: Run commands in a space, with faithful exit codes.
    Step    holofs run auto one --conda robot/conda.yaml -- python3 -c 'import os; print(os.environ["CONDA_DEFAULT_ENV"])'
    Must Be    rcc
    Step    holofs run auto one --conda robot/conda.yaml -- sh -c 'exit 3'    3
    Step    holofs run auto one --conda robot/conda.yaml -- sh -c 'kill -9 $$'    137
    Step    holofs run auto one --conda robot/conda.yaml --rcc-exit-codes -- false    10
    Refused    holofs run auto one --conda robot/conda.yaml -- no-such-program    127    no-such-program
    Refused    holofs run /no/library one -- true    125    /no/library
    Step    holofs list --mounted
    Wont Have    one

Goal: Run the tasks of a robot.
    Step    holofs run -r robot/robot.yaml --task Good -e robot/env.json
    Must Have    task in robot
    Must Have    greeting it's me
    Must Have    artifacts output
    Must Exist    ${ROBOT}/output
    Step    holofs run -r robot/robot.yaml --task Bad    7
    Refused    holofs run -r robot/robot.yaml --task Ugly    125    Ugly

Goal: In a robot's directory, mount needs no arguments.
    Step    holofs mount    cwd=${ROBOT}
    ${path}=    Strip String    ${STDOUT}
    Must Exist    ${path}/bin/python3
    Step    holofs unmount user

Goal: Mistakes in robots and files get the exit code of rcc.
    Refused    holofs variables no-such.yaml    5    no-such.yaml
    Refused    holofs variables -s never --no-mount robot/conda.yaml    6    not mounted
