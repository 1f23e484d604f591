# SPDX-License-Identifier: GPL-2.0-or-later
"""Real programs under real load, as the lab starts them in a guest: Redis, memcached, PostgreSQL, CPython."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mthp.lab.session.workload import PYTHON, ROOT, Command, User


@dataclass(frozen=True)
class Phase:
    """What is done to a program that goes on after it was captured, until it is captured again. load: one
    after the other. seconds: from then until the program is stopped."""

    name: str
    load: tuple[Command, ...]
    seconds: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """How to start a program and load it until it is stopped. argv[0] of a command: a program's name.

    packages: Debian's packages of the programs, used if this host lacks one. tools: programs that
    those call. trees: folders that they read -> patterns of names in it to leave out. files: path ->
    text. setup: commands to run before the program. ready: repeated until it succeeds. load: run then,
    one after the other. beside: load that continues in the background. until: then repeated until it
    succeeds. seconds: from then until the program is stopped. ready_seconds: for the ready command. phases:
    what comes after that; first: what is called what comes before.
    """

    name: str
    start: Command
    packages: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    trees: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    setup: tuple[Command, ...] = ()
    ready: Command | None = None
    load: tuple[Command, ...] = ()
    beside: Command | None = None
    until: Command | None = None
    seconds: float = 1.0
    ready_seconds: float = 120.0
    first: str = ""
    phases: tuple[Phase, ...] = ()

    def commands(self) -> list[Command]:
        """All commands, those that are not given left out."""
        later = [job for phase in self.phases for job in phase.load]
        jobs = (*self.setup, self.ready, self.start, *self.load, self.beside, self.until, *later)
        return [job for job in jobs if job is not None]

    def programs(self) -> tuple[str, ...]:
        """The names of all programs that the commands call, each once."""
        named = [job.argv[0] for job in self.commands()]
        return tuple(dict.fromkeys(name for name in (*named, *self.tools) if name != PYTHON))


def _job(line: str, *more: str, user: User = ROOT) -> Command:
    return Command((*line.split(), *more), user)


# --- CPython --------------------------------------------------------------------------------

_PYTHON_LOAD = """\
import random, time
random.seed(1)
words = {n: str(n) * random.randrange(1, 6) for n in range(120000)}
blocks = [bytearray(random.randrange(1000, 400000)) for _ in range(400)]
for n in range(0, 120000):
    if n // 700 % 3 == 0:
        del words[n]
for n in range(0, 400, 3):
    blocks[n] = None
open("/tmp/ready", "w").close()
turn = 0
while True:
    turn += 1
    words[turn % 120000] = str(turn)
    if turn % 1000 == 0:
        time.sleep(0.001)
"""

_PYTHON = Recipe(
    name="python",
    start=_job(f"{PYTHON} -S -c", _PYTHON_LOAD),
    ready=_job(f"{PYTHON} -S -c", "open('/tmp/ready')"),
    seconds=2.0,
)

# --- Redis ----------------------------------------------------------------------------------

_SOCKET = "/tmp/redis.sock"
_FORGET = """\
local gone = 0
for n = 0, 39999 do
  if math.floor(n / 300) % 3 == 0 then
    gone = gone + redis.call('DEL', string.format('key:%012d', n))
  end
end
return gone
"""

_REDIS = Recipe(
    name="redis",
    packages=("redis-server", "redis-tools"),
    start=_job(f"redis-server --port 0 --unixsocket {_SOCKET} --appendonly no --save", ""),
    ready=_job(f"redis-cli -s {_SOCKET} ping"),
    load=(
        _job(f"redis-benchmark -s {_SOCKET} -q -P 16 -r 40000 -n 120000 -d 700 -t set"),
        _job(f"redis-benchmark -s {_SOCKET} -q -P 16 -r 20000 -n 40000 -d 64 -t lpush,sadd,hset"),
        _job(f"redis-cli -s {_SOCKET} eval", _FORGET, "0"),
        _job(f"redis-benchmark -s {_SOCKET} -q -P 16 -r 40000 -n 20000 -d 1800 -t set"),
    ),
)

# --- Redis, bloated -------------------------------------------------------------------------

_KEYS, _VALUES = 24_000, 40
_INSERT = f"""\
local value = string.rep('v', 4096)
for n = 0, {_KEYS - 1} do redis.call('SET', 'small:' .. n, value) end
"""
_DELETE = f"""\
math.randomseed(1)
for n = 0, {_KEYS - 1} do
  if math.random(100) <= 80 then redis.call('DEL', 'small:' .. n) end
end
"""
_INSERT_LARGE = f"""\
local value = string.rep('w', 2 * 1024 * 1024)
for n = 0, {_VALUES - 1} do redis.call('SET', 'large:' .. n, value) end
"""
_DECAYED = 25.0
"""Seconds after which jemalloc has given freed pages back: ten for each of its two steps, and more."""


def _evaluate(script: str) -> Command:
    return _job(f"redis-cli -e -s {_SOCKET} eval", script, "0")


_REDIS_BLOAT = Recipe(
    name="redis-bloat",
    packages=("redis-server", "redis-tools"),
    start=_job(
        f"redis-server --port 0 --unixsocket {_SOCKET} --disable-thp no --appendonly no --save", ""
    ),
    ready=_job(f"redis-cli -s {_SOCKET} ping"),
    load=(_evaluate(_INSERT),),
    first="4 kB values",
    phases=(
        Phase("80 % deleted", (_evaluate(_DELETE),), _DECAYED),
        Phase("2 MB values", (_evaluate(_INSERT_LARGE),), _DECAYED),
    ),
)
"""HawkEye's case of bloat (Panwar, Bansal, Gopinath, ASPLOS 2019, figure 1), some 400 times smaller."""

# --- memcached ------------------------------------------------------------------------------

_MEMCACHED_SOCKET = "/tmp/memcached.sock"
_MEMCACHED_ASK = f"""\
import random, socket
peer = socket.socket(socket.AF_UNIX)
peer.connect({_MEMCACHED_SOCKET!r})
talk = peer.makefile("rwb")
def synchronise():
    talk.write(b"version\\r\\n")
    talk.flush()
    assert talk.readline().startswith(b"VERSION")
synchronise()
"""
_MEMCACHED_LOAD = f"""\
{_MEMCACHED_ASK}
random.seed(1)
def store(n, size):
    talk.write(b"set key:%d 0 0 %d noreply\\r\\n%s\\r\\n" % (n, size, b"v" * size))
for n in range(16000):
    store(n, random.choice((60, 300, 900, 2500, 9000)))
    if n % 1000 == 0:
        synchronise()
for n in range(16000):
    if n // 200 % 3 == 0:
        talk.write(b"delete key:%d noreply\\r\\n" % n)
for n in range(16000, 20000):
    store(n, random.randrange(100, 1800))
synchronise()
"""

_MEMCACHED = Recipe(
    name="memcached",
    packages=("memcached",),
    start=_job(f"memcached -u root -m 96 -t 2 -s {_MEMCACHED_SOCKET}"),
    ready=_job(f"{PYTHON} -S -c", _MEMCACHED_ASK),
    load=(_job(f"{PYTHON} -S -c", _MEMCACHED_LOAD),),
)

# --- PostgreSQL -----------------------------------------------------------------------------

_UID = 999
_USER = User(_UID, _UID)
_DATA = "/var/pg"
_HOME = "/usr/lib/postgresql/15"
_SCRIPT = "/lab/analyse.sql"
_CLIENTS = 3
_ANALYSE = """\
\\set size random(60000, 120000)
SELECT count(*) FROM (SELECT md5(n::text) FROM generate_series(1, :size) n GROUP BY 1) AS g;
BEGIN;
DECLARE sorted NO SCROLL CURSOR FOR
  SELECT n, repeat(md5(n::text), 2) AS t FROM generate_series(1, :size) AS n ORDER BY t;
FETCH 100 FROM sorted;
DECLARE grouped NO SCROLL CURSOR FOR
  SELECT aid % (:size / 3), string_agg(filler, ',') FROM pgbench_accounts GROUP BY 1;
FETCH 100 FROM grouped;
SELECT pg_sleep(3600);
"""
"""The last two queries are running, each with its memory, when the server is stopped."""
_ALL_ASLEEP = (
    f"SELECT 1 / (count(*) = {_CLIENTS})::int FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
)
_OPTIONS = (
    "listen_addresses= unix_socket_directories=/tmp fsync=off jit=off shared_buffers=32MB "
    "work_mem=64MB max_parallel_workers_per_gather=0 max_connections=20"
)
_FOLDER = f"import os; os.makedirs('{_DATA}'); os.chown('{_DATA}', {_UID}, {_UID})"

_POSTGRES = Recipe(
    name="postgres",
    packages=("postgresql-15",),
    tools=("sh",),
    trees={
        "/usr/share/postgresql/15": ("man", "contrib"),
        f"{_HOME}/lib": ("bitcode", "pgxs", "llvmjit*"),
    },
    files={
        "/etc/passwd": f"root:x:0:0::/root:/bin/sh\npostgres:x:{_UID}:{_UID}::{_DATA}:/bin/sh\n",
        "/etc/group": f"root:x:0:\npostgres:x:{_UID}:\n",
        _SCRIPT: _ANALYSE,
    },
    setup=(
        _job(f"{PYTHON} -S -c", _FOLDER),
        _job(f"{_HOME}/bin/initdb -D {_DATA} -A trust --no-locale -E UTF8 --no-sync", user=_USER),
    ),
    start=_job(
        f"{_HOME}/bin/postgres -D {_DATA}",
        *(word for option in _OPTIONS.split() for word in ("-c", option)),
        user=_USER,
    ),
    ready=_job(f"{_HOME}/bin/psql -h /tmp -d postgres -c", "SELECT 1", user=_USER),
    load=(
        _job(f"{_HOME}/bin/pgbench -h /tmp -i -q -s 2 postgres", user=_USER),
        _job(f"{_HOME}/bin/pgbench -h /tmp -n -c 2 -t 200 postgres", user=_USER),
    ),
    beside=_job(
        f"{_HOME}/bin/pgbench -h /tmp -n -c {_CLIENTS} -t 1 -f {_SCRIPT} postgres", user=_USER
    ),
    until=_job(f"{_HOME}/bin/psql -h /tmp -d postgres -c", _ALL_ASLEEP, user=_USER),
)

RECIPES = {recipe.name: recipe for recipe in (_REDIS, _REDIS_BLOAT, _MEMCACHED, _POSTGRES, _PYTHON)}
