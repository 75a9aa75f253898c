*** Settings ***
Documentation     Libraries: hashes, blueprints, catalogs, integrity, the classic restore, archives.
Resource          resources.robot
Suite Setup       Prepare Library
Suite Teardown    Clean World

*** Keywords ***
Prepare Library
    Prepare World
    Copy File    ${CURDIR}/../fixtures/basic-gz/blueprint.yaml    ${WORLD}/conda.yaml

*** Test Cases ***
Goal: The hash of an environment is rcc's.
    Step    holofs hash conda.yaml
    Must Be    adb8c26db4d86a93
    Step    holofs hash --show-blueprint --json conda.yaml
    ${hash}=    Must Be Json Response
    Refused    holofs hash no-such.yaml    5    no-such.yaml

Goal: Tell whether the library has an environment.
    Step    holofs blueprint conda.yaml
    Must Be    adb8c26db4d86a93 available
    Create File    ${WORLD}/other.yaml    channels:\n- conda-forge\ndependencies:\n- python=3.10\n
    Step    holofs blueprint other.yaml
    Must Have    missing
    Step    holofs blueprint other.yaml --check    6
    Step    holofs blueprint --json conda.yaml
    Must Be Json Response

Goal: A missing environment is answered with what is near.
    Refused    holofs mount auto demo --conda other.yaml    6    adb8c26db4d86a93
    Must Have    lacks

Goal: List and check the catalogs of a library.
    Step    holofs catalogs
    Must Have    adb8c26db4d86a93
    Step    holofs catalogs --json
    Must Be Json Response
    Step    holofs check auto
    Step    holofs check auto --json
    Must Be Json Response
    Refused    holofs catalogs /no/library    3    /no/library

Goal: Restore with each strategy that this disk has.
    FOR    ${strategy}    IN    copy    hardlink    smart
        Step    holofs restore auto ${strategy} --strategy ${strategy} --report
        Step    holofs path ${strategy}
        ${path}=    Strip String    ${STDOUT}
        Must Exist    ${path}/identity.yaml
        # A file that names its space is never shared.
        Step    grep -rlF "$(basename ${path})" ${path} | xargs stat -c %h | sort -u
        Must Be    1
    END
    Refused    holofs restore auto x --strategy fast    2    invalid value 'fast'

Goal: A restored tree and a mounted one are equal.
    Step    holofs mount auto mounted
    ${mounted}=    Strip String    ${STDOUT}
    Step    holofs path copy
    ${restored}=    Strip String    ${STDOUT}
    Step    diff -r --no-dereference --exclude=reloc --exclude=links ${mounted} ${restored} | grep -v "^Binary\\|^File .* is a" || true
    Wont Have    Only in
    Step    holofs unmount mounted

Goal: Mount an archive in place.
    Step    holofs export --help
    Step    holofs export auto adb8c26db4d86a93 -z ${WORLD}/hololib.zip
    Step    holofs mount ${WORLD}/hololib.zip zipped
    ${path}=    Strip String    ${STDOUT}
    Must Exist    ${path}/identity.yaml
    Step    holofs unmount zipped
