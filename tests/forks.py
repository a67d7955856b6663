"""A process that was forked from pytest before the first test, and forks a child for every command: none of them pays for its imports."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import signal
import sys
import warnings

ADAM_RATE = 0.01


class Forks:
    """The server, and its one child at a time."""

    def __init__(self):
        _import_what_children_need()
        asked, ask = os.pipe()
        answered, answer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
            self.server = os.fork()
        if self.server == 0:
            try:
                os.close(ask), os.close(answered)
                _serve(os.fdopen(asked), os.fdopen(answer, "w"))
            finally:
                os._exit(0)
        os.close(asked), os.close(answer)
        self.commands, self.answers = os.fdopen(ask, "w"), os.fdopen(answered)

    def close(self):
        """End the server; it ends by itself where this process is lost."""
        self.commands.close()
        os.waitpid(self.server, 0)
        self.answers.close()

    def start(self, function, *arguments):
        """Fork a child that runs ``module:function``; returns its pid once it is there."""
        self.commands.write(json.dumps([function, *arguments]) + "\n")
        self.commands.flush()
        return int(self.answers.readline())

    def ended(self):
        """Wait for the child; its exit code, negative where a signal killed it."""
        return os.waitstatus_to_exitcode(int(self.answers.readline()))

    def run(self, function, *arguments):
        self.start(function, *arguments)
        return self.ended()


def _import_what_children_need():
    """Of the process that forks the server: what either imports now, neither imports again."""
    import torch

    for name in ("pairs", "ppvae.fit", "ppvae.analysis", "ppvae.commands.train", "pyro.contrib.autoname", "torch._inductor.compile_fx"):
        importlib.import_module(name)
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # its module imports half of torch's compiler


def _serve(commands, answers):
    import torch

    # Hundreds of children tell what they do: nothing of it may come between pytest's own lines, or stop them where warnings are errors
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
    warnings.resetwarnings()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    for line in commands:
        function, *arguments = json.loads(line)
        with contextlib.suppress(Exception):  # the child tells; what one of them needs the next has
            importlib.import_module(function.partition(":")[0])
        child = os.fork()
        if child == 0:
            _be_the_child(function, arguments)
        print(child, file=answers, flush=True)
        print(os.waitpid(child, 0)[1], file=answers, flush=True)


def _be_the_child(function, arguments):
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
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
