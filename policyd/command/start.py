"""How a child process starts: with `python -m policyd.command.start MODULE …` in place of
`python -m MODULE …`.

Ctrl-C on a terminal reaches every process of a server, but a child is ended by its parent. One that
still loads its modules would end with a traceback, so it begins by ignoring the signal: parent.py
does the same once the child runs.
"""

import runpy
import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
