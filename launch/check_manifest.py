#!/usr/bin/env python3
"""Checks kubernetes.yaml: check_manifest.py MANIFEST MUSTER WORKDIR.

Every document is valid by the schemas of the version it says it needs and of the newest one known;
numbers and names that must be equal are; and muster understands the environment of its pods.
"""

import os
import subprocess
import sys

import kubernetes_validate
import yaml

NEEDED = "1.31"


def validate(documents):
    versions = [NEEDED, kubernetes_validate.latest_version()]
    for version in versions:
        for document in documents:
            kubernetes_validate.validate(document, version, strict=True)
    # A schema that lets everything pass would prove nothing.
    broken = {**documents[1], "spec": {**documents[1]["spec"], "completionz": 2}}
    try:
        kubernetes_validate.validate(broken, NEEDED, strict=True)
    except kubernetes_validate.ValidationError:
        return versions
    sys.exit("a misspelt key is valid")


def equal(what, *values):
    if len(set(values)) != 1:
        sys.exit(f"{what} differ: {values}")


def agree(service, job):
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    env = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
    nodes = int(env["MUSTER_NODES"])
    equal("completions, parallelism and MUSTER_NODES",
          spec["completions"], spec["parallelism"], nodes)
    equal("the service, the subdomain and MUSTER_SERVICE",
          service["metadata"]["name"], pod["subdomain"], env["MUSTER_SERVICE"])
    label = {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    term = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]
    equal("selectors", *(str(s) for s in [service["spec"]["selector"], label,
                                          term["labelSelector"]["matchLabels"]]))
    rules = spec["podFailurePolicy"]["rules"]
    equal("container names", container["name"], *(r["onExitCodes"]["containerName"] for r in rules
                                                  if "onExitCodes" in r))
    ranks = int(container["args"][container["args"].index("--ranks") + 1])
    if ranks % nodes:
        sys.exit(f"{ranks} ranks do not divide over {nodes} pods")
    return env


def understood(job, env, muster, work):
    """What a pod's muster says of its place, by the last pod's environment."""
    name, last = job["metadata"]["name"], job["spec"]["completions"] - 1
    pod = {"HOSTNAME": f"{name}-{last}", "JOB_COMPLETION_INDEX": str(last)}
    # Without the other pods there is no name for the first: what is said comes before that.
    ran = subprocess.run([muster, "train", os.path.join(work, "none.yaml"), "--dry-run"],
                         env={**os.environ, **env, **pod}, capture_output=True, text=True)
    line = ran.stdout.splitlines()[0] if ran.stdout else ran.stderr
    count, at = job["spec"]["completions"], f"{name}-0.{env['MUSTER_SERVICE']}:4000"
    for part in [f"started by Kubernetes as task {last} of {count}", f"all meet at {at}"]:
        if part not in line:
            sys.exit(f"no `{part}` in: {line}")


def main():
    manifest, muster, work = sys.argv[1:]
    with open(manifest, encoding="utf-8") as file:
        documents = list(yaml.safe_load_all(file))
    documents = [document for document in documents if document]
    versions = validate(documents)
    service, job = documents
    port = service["spec"]["ports"][0]["port"]
    equal("the service's port and Muster's", port, 4000)
    understood(job, agree(service, job), muster, work)
    print(f"{len(documents)} documents are valid for Kubernetes {' and '.join(versions)}")


main()
