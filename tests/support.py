"""What the tests of the binary share: running it, alone and under mpirun, and a store to run it on."""

import atexit
import ctypes
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

SOURCE = pathlib.Path(__file__).resolve().parent.parent
BINARY = os.environ["STAGECOACH_BINARY"]
MPIRUN = shutil.which("mpirun")
DEMO = SOURCE / "tests/data/demo-gptj"
# The arithmetic of tests that compare with what transformers computes.
REFERENCE = ("--kv", "f32", "--activations", "f32")
TIMEOUT = 120  # seconds; nothing here takes a tenth of it on an idle machine

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("STAGECOACH_")}
ENVIRONMENT |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
# Limits that the user has probed must not show in results here, nor those of a test reach the user.
CACHE = tempfile.mkdtemp(prefix="stagecoach-test-cache-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
ENVIRONMENT["STAGECOACH_CACHE"] = CACHE
if "STAGECOACH_ISA" in os.environ:  # the whole suite under one instruction set
    ENVIRONMENT["STAGECOACH_ISA"] = os.environ["STAGECOACH_ISA"]


def mpirun(ranks):
    return [MPIRUN, "--oversubscribe", "--bind-to", "none", "-np", str(ranks)]


def run(*arguments, ranks=0, stdin=None, environment=None, text=True):
    """Runs the binary: ranks = 0 without mpirun. Returns the finished process."""
    command = (mpirun(ranks) if ranks else []) + [BINARY] + [str(a) for a in arguments]
    return subprocess.run(command, capture_output=True, text=text, input=stdin, timeout=TIMEOUT,
                          env=ENVIRONMENT | (environment or {}), check=False)


MODULES = pathlib.Path(BINARY).resolve().parent.parent / "lib/cuda_sim"
SIMULATED = unittest.skipUnless((MODULES / "stagecoach-cuda.so").exists(), "this build has no simulated CUDA module")
# An empty driver, by which it looks as if the PC had a GPU.
SIMULATED_DRIVER = {"LD_LIBRARY_PATH": f"{MODULES / 'driver'}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":")}


# Of simulated devices, for tests of what depends on the order of what is unordered; scripts/sim_soak gives others.
SEEDS = [int(seed) for seed in os.environ.get("STAGECOACH_TEST_SEEDS", "1 2").split()]


def simulated(**settings):
    """The environment of a run on simulated devices: devices=2, seed=7, … The first of SEEDS is the default."""
    settings = {"seed": SEEDS[0]} | settings
    return {"STAGECOACH_MODULES": str(MODULES)} | {f"STAGECOACH_CUDA_SIM_{k.upper()}": str(v) for k, v in settings.items()}


def has_driver():
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def json_lines(process):
    return [json.loads(line) for line in process.stdout.splitlines()]


class StoreTest(unittest.TestCase):
    """Has the demo model as a store, and a folder of its own."""

    @classmethod
    def setUpClass(cls):
        cls.shared = pathlib.Path(tempfile.mkdtemp(prefix="stagecoach-test-"))
        cls.store = cls.shared / "demo"
        imported = run("import", DEMO, cls.store, "--quiet")
        assert imported.returncode == 0, imported.stderr

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.shared, ignore_errors=True)

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="stagecoach-test-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def fails(self, process, code, *words):
        """The documented exit code, and one message on stderr that names all of `words`."""
        self.assertEqual(process.returncode, code, process.stderr)
        messages = [line for line in process.stderr.splitlines() if line.startswith("stagecoach: ")]
        self.assertEqual(len(messages), 1, process.stderr)
        for word in words:
            self.assertIn(str(word), process.stderr)

    def succeeds(self, process):
        self.assertEqual(process.returncode, 0, process.stderr)
        return process
