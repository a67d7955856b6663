"""A process that has imported everything and forks a child for every command: what is killed often pays for its imports once."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

ADAM_RATE = 0.01


class Forks:
    """The server, and its one child at a time."""

    def __enter__(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
        # Hundreds of children tell what they do: a pipe that nobody reads is full one day, and whoever writes to it waits for ever
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, stderr=subprocess.DEVNULL
        )
        return self

    def __exit__(self, *_):
        self.server.stdin.close()
        self.server.wait(60)
        self.server.stdout.close()

    def start(self, function, *arguments):
        """Fork a child that runs ``module:function``; returns its pid once it is there."""
        self.server.stdin.write(json.dumps([function, *arguments]) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def ended(self):
        """Wait for the child; its exit code, negative where a signal killed it."""
        return os.waitstatus_to_exitcode(int(self.server.stdout.readline()))

    def run(self, function, *arguments):
        self.start(function, *arguments)
        return self.ended()


def serve():
    import torch

    import ppvae  # noqa: F401  (what is imported here no child imports again)

    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    for name in ("pairs", "ppvae.fit", "ppvae.interruption", "pyro.contrib.autoname"):
        importlib.import_module(name)
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # its module imports half of torch's compiler
    for line in sys.stdin:
        function, *arguments = json.loads(line)
        with contextlib.suppress(Exception):  # the child tells; what one of them needs the next has
            importlib.import_module(function.partition(":")[0])
        child = os.fork()
        if child == 0:
            _be_the_child(function, arguments)
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)


def _be_the_child(function, arguments):
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        module, name = function.split(":")
        code = getattr(importlib.import_module(module), name)(*arguments) or 0
    except KeyboardInterrupt as error:
        code = getattr(error, "exit_code", 1)
    except Exception as error:
        code = getattr(error, "exit_code", 71)
    finally:
        os._exit(code)


def train(folder, pair="registered", epochs=2, checkpoint_every=0.01, num_data=160):
    """A small run of 10 steps an epoch, with everything that a checkpoint has to hold."""
    import torch

    import pairs
    import ppvae
    from ppvae.interruption import exit_code

    torch.manual_seed(0)
    run = ppvae.fit(
        *getattr(pairs, pair)(),
        pairs.real(num_data),
        validation=pairs.real(40, seed=1),
        optimizer=functools.partial(torch.optim.Adam, lr=ADAM_RATE),
        scheduler=functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9),
        epochs=epochs,
        batch_size=16,
        seed=5,
        out=folder,
        resume=True,
        checkpoint_every=checkpoint_every,
    )
    return exit_code(run)


if __name__ == "__main__":
    serve()
