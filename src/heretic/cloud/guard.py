# SPDX-License-Identifier: Apache-2.0
"""The guard on the rented machine: it pauses the instance when the lease ends (reliability H06).

`onstart_script` is handed to the provider at `create` and runs at every start of the container. It needs no secret of
the user: the provider puts a key that is good for this one instance alone into the container (CONTAINER_API_KEY, with
CONTAINER_ID), and the guard asks the provider's API with it. A shutdown from inside would not do: the container ends,
and the contract is billed on.

The lease is an absolute moment in a file, so a restart of the container does not lengthen it. Found in the past at a
start (somebody started the paused machine), the guard grants `GRACE_S` in which `heretic-vast extend` can renew it.
What it does, and that it lives, stands in files beside it, which `watch` and `progress` read.

Limits: it needs the network of the machine; a machine that is offline is not paused by it. Pausing leaves the disk,
which is billed on. Whether the provider gave the key is known only on the machine: without it, the file `guard.state`
says so and `watch` shows it as a discrepancy.
"""

from __future__ import annotations

import json
from typing import Final

from heretic.exceptions import ConfigurationError

GRACE_S: Final = 1800
POLL_S: Final = 20
RETRY_S: Final = 30
LARGEST_LEASE_H: Final = 24.0
DEFAULT_LEASE_H: Final = 12.0
FOLDER: Final = ".heretic"

_PROGRAM: Final = """
import fcntl,json,os,signal,sys,time,urllib.error,urllib.request
C=json.loads(sys.argv[1])
os.chdir(C["folder"])
lock=open("guard.lock","w")
try: fcntl.flock(lock,fcntl.LOCK_EX|fcntl.LOCK_NB)
except OSError: sys.exit(0)
def put(name,text):
    with open(name+".new","w") as f: f.write(text)
    os.replace(name+".new",name)
def end():
    try: return float(open("lease").read())
    except (OSError,ValueError): return 0.0
def log(text): print(time.strftime("%FT%TZ",time.gmtime()),text,flush=True)
now=time.time()
if not end(): put("lease",str(now+C["hours"]*3600))
elif end()<now:
    put("lease",str(now+C["grace"])); log("lease was over; grace granted")
key,me=os.environ.get("CONTAINER_API_KEY",""),os.environ.get("CONTAINER_ID","")
if not(key and me.isdigit()): log("no key for this instance: the guard cannot act")
def stop(v):
    r=urllib.request.Request("%s/api/%s/instances/%s/"%(C["url"],v,me),json.dumps({"state":"stopped"}).encode(),
      {"Authorization":"Bearer "+key,"Content-Type":"application/json"},method="PUT")
    try:
        with urllib.request.urlopen(r,timeout=30) as a: return a.status
    except urllib.error.HTTPError as e: return e.code
    except OSError as e: return type(e).__name__
while True:
    left=end()-time.time()
    word="armed" if key and me.isdigit() else "no-key"
    if left<=0:
        word="asking"
        try:
            run=json.load(open("run.json")); p=int(run["pid"])
            if open("/proc/%d/stat"%p).read().rsplit(")",1)[1].split()[19]==run["start"]: os.kill(p,signal.SIGTERM)
        except (OSError,ValueError,KeyError,IndexError): pass
        os.sync(); time.sleep(C["save"])
        for v in ("v0","v1"):
            a=stop(v); log("asked to pause: %s"%a)
            if a!=410: break
        if a!=200: word="failed"
    put("guard.state","%s %d"%(word,time.time()))
    time.sleep(C["retry"] if left<=0 else max(0.2,min(left,C["poll"])))
"""


def onstart_script(
    hours: float,
    *,
    api_url: str,
    workspace: str,
    poll_s: float = POLL_S,
    retry_s: float = RETRY_S,
    save_s: float = 10.0,
) -> str:
    """The script for the provider's `onstart` field: folders, and the guard when hours > 0.

    hours: the lease from the first start. save_s: what a run has between SIGTERM and the pause.
    """
    folder = f"{workspace}/{FOLDER}"
    lines = ["#!/bin/bash", f"mkdir -p '{folder}' '{workspace}/models' '{workspace}/.cache/huggingface'"]
    if hours > 0:
        options = json.dumps(
            {
                "folder": folder,
                "hours": hours,
                "url": api_url,
                "grace": GRACE_S,
                "poll": poll_s,
                "retry": retry_s,
                "save": save_s,
            }
        )
        lines += [
            f"cat > '{folder}/guard.py' <<'END'{_PROGRAM}END",
            f"setsid nohup python3 '{folder}/guard.py' '{options}' >> '{folder}/guard.log' 2>&1 < /dev/null &",
        ]
    return "\n".join(lines) + "\n"


def check_hours(hours: float) -> float:
    """The length of a lease: above 0, at most 24 hours. Raises `ConfigurationError`."""
    if not 0 < hours <= LARGEST_LEASE_H:
        raise ConfigurationError(
            f"--max-hours is {hours:g}",
            hint=f"Give more than 0 and at most {LARGEST_LEASE_H:g}; 'heretic-vast extend' lengthens a lease.",
        )
    return hours
