#!/usr/bin/env bash
# kubernetes.yaml against the schemas of Kubernetes (those in PyPI's kubernetes-validate, without a
# network), and what the schemas do not know: that its parts agree with each other and with Muster.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/testing.sh"

python_tools kubernetes-validate pyyaml >/dev/null ||
    skip "PyPI's kubernetes-validate cannot be installed"
"$tools/bin/python" "$launch/check_manifest.py" "$launch/kubernetes.yaml" "$MUSTER" "$work" ||
    fail "kubernetes.yaml"

# The Dockerfile builds what the README says, from files that are there.
while read -r _ source _; do
    [[ -e $repository/$source ]] || fail "Dockerfile copies $source, which is not there"
done < <(grep '^COPY [^-]' "$launch/Dockerfile")
grep -q 'cargo build --release' "$launch/Dockerfile" || fail "Dockerfile does not build"
echo "kubernetes.yaml: valid, its parts agree, and its pods find each other"
