*** Settings ***
Documentation     What was changed in a space: to see it, to undo it, to keep it.
Resource          resources.robot
Suite Setup       Prepare Changes
Suite Teardown    Clean World

*** Keywords ***
Prepare Changes
    Prepare World
    Step    holofs mount auto demo
    ${path}=    Strip String    ${STDOUT}
    Set Suite Variable    ${PATH}    ${path}
    Step    echo new > ${path}/new.txt && echo more >> ${path}/readme.txt && rm ${path}/empty-file

*** Test Cases ***
Goal: See what was changed, mounted and unmounted.
    Step    holofs diff demo
    Must Have    A${SPACE}new.txt
    Must Have    M${SPACE}readme.txt
    Must Have    D${SPACE}empty-file
    Step    holofs diff demo --exit-code    1
    Step    holofs diff demo --json
    Must Be Json Response
    Step    holofs unmount demo
    Step    holofs diff demo --name-only
    Must Have    new.txt
    Step    holofs mount auto demo
    Refused    holofs diff nobody    6    no such space

Goal: See what a mount did.
    Step    cat ${PATH}/bin/random.bin > /dev/null
    Step    holofs stats demo
    Step    holofs stats demo --json
    ${stats}=    Must Be Json Response
    Dictionary Should Contain Key    ${stats}    files
    Refused    holofs stats nobody    6    no such space

Goal: Fork a space with its changes.
    Step    holofs fork demo copy
    Step    holofs mount auto copy
    ${copy}=    Strip String    ${STDOUT}
    Step    cat ${copy}/new.txt
    Must Be    new
    Step    holofs unmount copy

Goal: Keep the changes as a new environment.
    Create File    ${WORLD}/more.yaml    channels:\n- conda-forge\ndependencies:\n- python=3.11\n- more\n
    Step    holofs commit demo --blueprint more.yaml
    Step    holofs mount auto more --conda more.yaml
    ${more}=    Strip String    ${STDOUT}
    Step    cat ${more}/new.txt
    Must Be    new
    Wont Exist    ${more}/empty-file
    Step    holofs unmount more

Goal: Undo the changes of a mounted space.
    Step    holofs reset demo --dry-run
    Must Have    new.txt
    Must Exist    ${PATH}/new.txt
    Step    holofs reset demo readme.txt
    Step    cat ${PATH}/readme.txt
    Wont Have    more
    Must Exist    ${PATH}/new.txt
    Step    holofs reset demo
    Wont Exist    ${PATH}/new.txt
    Must Exist    ${PATH}/empty-file
    Step    holofs diff demo
    Must Be Empty

Goal: Delete a space.
    Step    holofs unmount demo
    Step    holofs delete demo
    Step    holofs list
    Wont Have    demo
