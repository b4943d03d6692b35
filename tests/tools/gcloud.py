#!/usr/bin/env python3
"""Stands in for gcloud: the slice is folders of this machine, and its hosts are their homes.

FAKE_CLOUD: folder with ``state`` (of the slice), ``calls.jsonl`` (what was asked), and the homes ``host<n>``.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

cloud = pathlib.Path(os.environ["FAKE_CLOUD"])
arguments = sys.argv[1:]
verb = arguments[arguments.index("tpu-vm") + 1]
options = dict(argument[2:].partition("=")[::2] for argument in arguments if argument.startswith("--"))
with open(cloud / "calls.jsonl", "a") as calls:
    calls.write(json.dumps([verb, options]) + "\n")
state, hosts = cloud / "state", sorted(cloud.glob("host*"))

if verb == "list":
    print(state.read_text())
elif verb == "create":
    state.write_text("READY")
elif verb == "delete":
    state.write_text("")
elif verb == "scp":
    source = next(argument for argument in arguments if argument.endswith(".tar.gz") and ":" not in argument)
    for host in hosts:
        (host / "jaxpref.tar.gz").write_bytes(pathlib.Path(source).read_bytes())
elif verb == "ssh":
    chosen = hosts if options["worker"] == "all" else [hosts[int(options["worker"])]]
    for host in chosen:
        own = {"HOME": str(host), "JAX_PROCESS_ID": re.sub(r"\D", "", host.name)}
        subprocess.run(["bash", "-c", options["command"]], env=os.environ | own, check=True)
