# SPDX-License-Identifier: Apache-2.0
"""The program that looks at the machine and changes nothing: text that is sent there, one JSON object back.

A process counts as alive when its pid exists with the start time that was recorded; uptime is not read (R-VAS-54).
"""

from __future__ import annotations

from typing import Final

PROGRAM: Final = """
import json, os, shutil, subprocess, sys, time
spec = json.loads(sys.stdin.readline())
state, models, log = spec["state"], spec["models"], spec["log"]

def load(name):
    try:
        with open(os.path.join(state, name)) as stream:
            return json.load(stream)
    except (OSError, ValueError):
        return None

def text(name):
    try:
        with open(os.path.join(state, name)) as stream:
            return stream.read(200)
    except OSError:
        return ""

def process(run):
    try:
        with open("/proc/%d/stat" % int(run["pid"])) as stream:
            fields = stream.read().rsplit(")", 1)[1].split()
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return {"alive": False}
    if fields[19] != run.get("start") or fields[0] in "ZX":
        return {"alive": False}
    hertz = os.sysconf("SC_CLK_TCK")
    return {"alive": True, "cpu_s": sum(int(part) for part in fields[11:15]) / hertz}

def size(folder):
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:
                pass
    return total

def saved():
    found = []
    try:
        entries = sorted(os.scandir(models), key=lambda entry: entry.name)
    except OSError:
        return found
    for entry in entries:
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
            has = [os.path.isfile(os.path.join(entry.path, name)) for name in ("SHA256SUMS", "heretic_run.json")]
            whole = all(has) and not entry.name.endswith(".partial")
            found.append({"name": entry.name, "bytes": size(entry.path), "complete": whole})
    return found

def gpus():
    fields = "index,name,utilization.gpu,memory.used,memory.total,temperature.gpu,power.draw"
    try:
        told = subprocess.run(["nvidia-smi", "--query-gpu=" + fields, "--format=csv,noheader,nounits"],
                              capture_output=True, text=True, timeout=15)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if told.returncode:
        return None
    return [[part.strip() for part in line.split(",")] for line in told.stdout.splitlines() if line.strip()]

def tail():
    try:
        with open(log, "rb") as stream:
            stream.seek(0, 2)
            end = stream.tell()
            stream.seek(max(0, end - spec["log_bytes"]))
            data = stream.read().decode("utf-8", "replace")
            return data.splitlines()[-spec["log_lines"]:], end, os.fstat(stream.fileno()).st_mtime
    except OSError:
        return [], 0, 0

run = load("run.json")
seen = process(run) if run else {"alive": False}
for _ in range(10):
    ended = load("run.exit")
    if not run or seen["alive"] or (ended and ended.get("pid") == run.get("pid")):
        break
    time.sleep(0.1)  # its supervisor is about to write the status down, or nobody is
lines, length, written = tail()
disk = shutil.disk_usage(spec["workspace"]) if os.path.isdir(spec["workspace"]) else None
try:
    lease = float(text("lease") or 0)
except ValueError:
    lease = 0
beat = load("run.beat")
print(json.dumps({
    "now": time.time(), "run": run, "process": seen, "exit": load("run.exit"),
    "beat": beat if isinstance(beat, (int, float)) else 0, "gpus": gpus(), "models": saved(), "log": lines,
    "log_bytes": length, "log_written": written, "disk": [disk.used, disk.total, disk.free] if disk else None,
    "guard": text("guard.state"), "lease": lease, "ready": os.access(spec["program"], os.X_OK),
}))
"""
