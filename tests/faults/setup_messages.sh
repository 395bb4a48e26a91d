#!/usr/bin/env bash
# What set-up says went wrong: a log, and a part of the sentence that a user gets. Nothing is built.
log=$(mktemp)
# shellcheck source=../../runs/setup/console.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../runs/setup/console.sh"
trap 'rm -f "$log"' EXIT
failures=0 cases=0

# says SENTENCE LOG: the sentence for a step that wrote this; '' for one that nothing is known of
says() {
  local got
  printf '%b\n' "$2" >"$log"
  got=$(explain "$log")
  cases=$((cases + 1))
  if [[ -n $1 && $got == *"$1"* ]] || [[ -z $1 && -z $got ]]; then return; fi
  failures=$((failures + 1))
  printf 'FAILED: %s\n  says: %s\n  not:  %s\n' "$2" "$got" "$1"
}

# pip behind a proxy of its own certificate ends with the words of a package that does not exist.
says 'certificate is not trusted' "WARNING: Retrying (Retry(total=0)) after connection broken by 'SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate in certificate chain (_ssl.c:1006)'))': /simple/torch/\nERROR: Could not find a version that satisfies the requirement torch==2.11.0 (from versions: none)\nERROR: No matching distribution found for torch==2.11.0"
says 'set PIP_CERT' "Could not fetch URL https://pypi.org/simple/torch/: There was a problem confirming the ssl certificate: HTTPSConnectionPool(host='pypi.org', port=443): Max retries exceeded (Caused by SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]'))) - skipping"
says 'ca-certificates' 'W: https://deb.debian.org/debian: Certificate verification failed: The certificate is NOT trusted. The certificate issuer is unknown.'
says 'ca-certificates' 'curl: (60) SSL certificate problem: unable to get local issuer certificate'
says 'has no such package' 'ERROR: Could not find a version that satisfies the requirement torch==2.11.0 (from versions: 2.8.0)\nERROR: No matching distribution found for torch==2.11.0'
says 'no network' "WARNING: Retrying after connection broken by 'NewConnectionError: Failed to establish a new connection: [Errno 101] Network is unreachable'\nERROR: Could not find a version that satisfies the requirement torch==2.11.0 (from versions: none)"
says 'the disk is full' 'ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device'
says 'ran out of memory' 'c++: fatal error: Killed signal terminated program cc1plus'
says "enable 'universe'" 'E: Unable to locate package libcli11-dev'
says 'another package manager' 'E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 4711 (apt)'
says '' 'src/base/text.cpp:3: error: expected ;'

((failures == 0)) || { echo "$failures of $cases messages"; exit 1; }
echo "passed: $cases messages"
