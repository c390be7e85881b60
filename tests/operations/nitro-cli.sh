#!/usr/bin/env bash
# A fake of AWS's nitro-cli, which runs on EC2 alone: the four commands that deploy/run-enclave.sh uses, with the output of
# nitro-cli 1.4 as it was published. It shows what the script does, and nothing about nitro-cli. State is in $FAKE.
set -eu
printf '%s\n' "$*" >>"$FAKE/calls"
id=i-0a2b9faf0dffc7c02-enc19ca3b4e461afb1
case $1 in
run-enclave)
    echo 'Start allocating memory...' >&2
    [ ! -e "$FAKE/slow" ] || sleep 1
    if [ -e "$FAKE/refuse" ]; then
        echo '[ E39 ] Enclave process connection failure' >&2
        exit 1
    fi
    cid=$(printf '%s\n' "$*" | sed 's/.*--enclave-cid \([0-9]*\).*/\1/')
    echo "$cid" >"$FAKE/enclave"
    [ ! -e "$FAKE/silent" ] || exit 0
    printf '{\n  "EnclaveName": "subrosa",\n  "EnclaveID": "%s",\n  "ProcessID": 65721,\n  "EnclaveCID": %s,\n' "$id" "$cid"
    printf '  "NumberOfCPUs": 2,\n  "CPUIDs": [\n    1,\n    3\n  ],\n  "MemoryMiB": 512\n}\n'
    ;;
describe-enclaves)
    [ ! -e "$FAKE/broken" ] || exit 1
    printf '[\n  {\n    "EnclaveName": "other",\n    "EnclaveID": "i-other-enc1",\n    "EnclaveCID": 99,\n    "State": "TERMINATING"\n  }'
    if [ -e "$FAKE/enclave" ]; then
        state=RUNNING
        [ ! -e "$FAKE/state" ] || state=$(cat "$FAKE/state")
        printf ',\n  {\n    "EnclaveName": "subrosa",\n    "EnclaveID": "%s",\n    "ProcessID": 65721,\n    "EnclaveCID": %s,\n' "$id" "$(cat "$FAKE/enclave")"
        printf '    "MemoryMiB": 512,\n    "State": "%s",\n    "Flags": "NONE"\n  }' "$state"
    fi
    printf '\n]\n'
    ;;
terminate-enclave)
    [ "$3" = "$id" ]
    rm -f "$FAKE/enclave"
    echo '{ "Terminated": true }'
    ;;
console)
    echo "console of $3"
    while [ -e "$FAKE/enclave" ]; do sleep 0.1; done
    ;;
*)
    echo "the fake does not know $1" >&2
    exit 64
    ;;
esac
