*** Settings ***
Documentation     The daily commands: mount, look, change, unmount.
Resource          resources.robot
Suite Setup       Prepare World
Suite Teardown    Clean World

*** Test Cases ***
Goal: The help of holofs fits one screen and begins with what is needed daily.
    Step    holofs --help
    Must Have    mount
    Must Have    unmount
    ${lines}=    Get Line Count    ${STDOUT}
    Should Be True    24 <= ${lines} <= 40

Goal: Mount the only environment of a library.
    Step    holofs mount auto demo
    ${path}=    Strip String    ${STDOUT}
    Set Suite Variable    ${PATH}    ${path}
    Must Have    ${ROBOCORP_HOME}/holotree/
    Must Exist    ${path}/identity.yaml
    Use STDERR
    Must Be Empty

Goal: Mounting it again is success and says so.
    Step    holofs mount auto demo
    Must Be    ${PATH}
    Use STDERR
    Must Have    already mounted

Goal: See the space in the list, with what rcc's list has.
    Step    holofs list
    Must Have    demo
    Must Have    rcc.user
    Must Have    adb8c26db4d86a93
    Must Have    mounted
    Step    holofs list --json
    ${spaces}=    Must Be Json Response
    ${identity}=    Fetch From Right    ${PATH}    /
    Should Be Equal    ${spaces}[${identity}][space]    demo
    Should Be Equal    ${spaces}[${identity}][state]    mounted

Goal: Ask for the path and the status of a space.
    Step    holofs path demo
    Must Be    ${PATH}
    Step    holofs status demo
    Must Have    mounted
    Step    holofs status demo --json
    Must Be Json Response

Goal: A change is private to its space and stays.
    Step    echo mine > ${PATH}/readme.txt && echo new > ${PATH}/new.txt
    Step    holofs mount auto other
    ${other}=    Strip String    ${STDOUT}
    Wont Exist    ${other}/new.txt
    Step    cmp -s ${PATH}/readme.txt ${other}/readme.txt    1
    Step    holofs unmount demo
    Must Be    ${PATH}
    Wont Exist    ${PATH}/new.txt
    Step    holofs mount auto demo
    Step    cat ${PATH}/new.txt ${PATH}/readme.txt
    Must Have    new
    Must Have    mine

Goal: The library was never written.
    Step    holofs check auto
    Step    find ${ROBOCORP_HOME}/hololib/library -type f -newer ${WORLD}/mark | wc -l
    Must Be    0

Goal: Unmount all spaces; what is not mounted is no error.
    Step    holofs unmount --all
    Must Have    ${PATH}
    Step    holofs unmount demo
    Must Be Empty
    Use STDERR
    Must Have    not mounted
    Step    holofs list --mounted
    Wont Have    demo

Goal: Mistakes get one line of what is wrong, one of what to try, and the exit code of their kind.
    Refused    holofs mount /no/such/library demo    3    /no/such/library
    Refused    holofs mount auto demo --blueprint ffff    6    no catalog of blueprint ffff
    Refused    holofs mount auto demo --strategy fast    2    invalid value 'fast'
    Refused    holofs mount auto demo --strategy hardlink    2    inode
    Refused    holofs status nobody    6    no such space
    Refused    holofs mount    2    robot.yaml
    Refused    holofs mont auto demo    2    unrecognized subcommand 'mont'
