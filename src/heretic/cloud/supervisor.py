# SPDX-License-Identifier: Apache-2.0
"""The program that keeps a run on the machine (reliability H09): text that is sent there, standard library only.

It takes a kernel lock that the run inherits, so two runs can never live at once; starts the run in a session of its
own; writes `run.json` (pid with its start time, command, model, study) before it says so; beats every few seconds; and
writes `run.exit` when the run has ended. Secrets come by its standard input and go into the run's environment alone.
"""

from __future__ import annotations

from typing import Final

HELD: Final = 75
"""Exit status when a run lives already."""

PROGRAM: Final = """
import fcntl, json, os, signal, subprocess, sys, time
spec = json.loads(sys.stdin.read())
os.umask(0o077)
os.makedirs(spec["state"], exist_ok=True)
os.chdir(spec["state"])

def put(name, value):
    with open(name + ".new", "w") as stream:
        json.dump(value, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(name + ".new", name)

def ticks(pid):
    with open("/proc/%d/stat" % pid) as stream:
        return stream.read().rsplit(")", 1)[1].split()[19]

lock = open("run.lock", "a+")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    try:
        print(open("run.json").read())
    except OSError:
        print("{}")
    sys.exit(75)
for name in ("run.exit", "run.beat"):
    if os.path.exists(name):
        os.remove(name)
reading, writing = os.pipe()
if os.fork():
    os.close(writing)
    with os.fdopen(reading) as stream:
        told = stream.read()
    print(told, flush=True)
    os._exit(0 if "pid" in told else 1)
os.close(reading)
os.setsid()
if os.fork():
    os._exit(0)
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
null = os.open(os.devnull, os.O_RDWR)
log = os.open(spec["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
for target, source in ((0, null), (1, log), (2, log)):
    os.dup2(source, target)

def fresh():
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)

try:
    run = subprocess.Popen(
        spec["command"], cwd=spec["workspace"], env={**os.environ, **spec["environment"]},
        stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=(lock.fileno(),), preexec_fn=fresh,
    )
    facts = {"pid": run.pid, "start": ticks(run.pid), "command": spec["command"], "model": spec["model"],
             "study": spec["study"], "started": time.time(), "supervisor": os.getpid()}
    put("run.json", facts)
    os.write(writing, json.dumps(facts).encode())
except OSError as error:
    os.write(writing, json.dumps({"error": str(error)}).encode())
    os._exit(1)
os.close(writing)
spec["environment"].clear()
while True:
    put("run.beat", time.time())
    try:
        code = run.wait(timeout=spec["beat"])
        break
    except subprocess.TimeoutExpired:
        pass
put("run.exit", {"code": code, "time": time.time(), "pid": run.pid})
"""
