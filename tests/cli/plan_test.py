"""stagecoach plan: a cluster that is only described."""

import json
import socket
import unittest

from support import SIMULATED, SIMULATED_DRIVER, SOURCE, StoreTest, run, simulated

RATES = "memory_gb_per_s = 30\nf32_gflop_per_s = 200\nbf16_gflop_per_s = 200\nint8_gop_per_s = 400\ndisk_gb_per_s = 1\n"


class Plan(StoreTest):
    def cluster(self, text):
        path = self.folder / "cluster.toml"
        path.write_text(text)
        return path

    def plan(self, cluster, *flags):
        return run("plan", "--store", self.store, "--cluster", cluster, "--tokens", 64, "--new-tokens", 16, *flags,
                   environment={"STAGECOACH_CACHE": str(self.folder / "cache")})

    def test_text_and_json_say_the_same(self):
        cluster = self.cluster("".join(f'[nodes.pc-{i}]\nmemory = "300MB"\n{RATES}' for i in range(3)))
        result = json.loads(self.succeeds(self.plan(cluster, "--json")).stdout)
        self.assertEqual(sum(host["layers"] for host in result["hosts"]), 7)
        self.assertEqual(len(result["hosts"]) + len(result["left_out"]), 3)
        self.assertEqual(result["hosts"][0]["memory_budget"], 300_000_000)
        self.assertGreater(result["tokens_per_second"], 0)
        self.assertEqual(result["rates_of_this_machine"], [])
        text = self.succeeds(self.plan(cluster, "--explain")).stdout
        self.assertIn("mpirun --oversubscribe --bind-to none --host", text)
        self.assertIn(f"--windows {result['windows']}", text)
        self.assertIn(f"with one more PC like {result['bound_host']}", text)
        self.assertIn(result["hosts"][0]["explanation"], text)

    def test_a_simulation_is_near_the_plan(self):
        cluster = self.cluster("".join(f'[nodes.pc-{i}]\nmemory = "300MB"\n{RATES}' for i in range(3)))
        result = json.loads(self.succeeds(self.plan(cluster, "--simulate", "--json", "--sequences", 4)).stdout)
        simulation = result["simulation"]
        self.assertLess(abs(simulation["step_seconds"] / result["step_seconds"] - 1), 0.3)
        self.assertEqual(len(simulation["hosts"]), len(result["hosts"]))
        self.assertIn("computes", self.succeeds(self.plan(cluster, "--simulate")).stdout)

    def test_the_plan_runs(self):
        """mpirun takes the windows, and the ranks stay within the memory that was planned."""
        here = socket.gethostname()
        cluster = self.cluster(f'[nodes.{json.dumps(here)}]\nmemory = "2GiB"\n{RATES}[nodes.other]\nmemory = "2GiB"\n{RATES}')
        result = json.loads(self.succeeds(self.plan(cluster, "--json", "--sequences", 8)).stdout)
        ids = self.folder / "ids"
        ids.write_text("1 2 3 4")
        self.succeeds(run("score", "--store", self.store, "--windows", result["windows"], "--ids", ids, "--job", cluster,
                          ranks=len(result["hosts"])))

    def test_a_model_that_fits_nowhere_is_refused(self):
        cluster = self.cluster(f'[nodes.a]\nmemory = "20MB"\n{RATES}')
        self.fails(self.plan(cluster), 4, "cannot hold the model", "memory =")

    @SIMULATED
    def test_a_gpu_without_rates_is_taken_to_be_like_the_one_here(self):
        cluster = self.cluster(f'[nodes.a]\nmemory = "2GB"\n{RATES}device_memory = "2GB"\n[nodes.b]\nmemory = "2GB"\n{RATES}')
        self.fails(self.plan(cluster), 2, "nodes.a", "how fast its GPU is", "stagecoach probe")
        cache = self.folder / "cache"
        cache.mkdir()
        self.succeeds(run("probe", "--quick", environment=simulated() | SIMULATED_DRIVER | {"STAGECOACH_CACHE": str(cache)}))
        result = json.loads(self.succeeds(self.plan(cluster, "--json")).stdout)
        self.assertEqual(result["rates_of_this_machine"], ["a"])

    def test_layers_of_processors_that_a_run_would_refuse(self):
        host = f'[nodes.a]\nmemory = "1GiB"\n{RATES}'
        self.fails(self.plan(self.cluster(host), "--cpu-layers", 3), 2, "--cpu-layers 3 needs a GPU", "device_memory in [nodes.NAME]")
        gpu = 'device_memory = "1GiB"\ndevice_gb_per_s = 360.0\ndevice_gflop_per_s = 50000.0\nbus_gb_per_s = 12.0\n'
        self.fails(self.plan(self.cluster(host + gpu), "--cpu-layers", 8), 2, "--cpu-layers 8: expected at most 7")
        self.assertIn("--cpu-layers 3", self.succeeds(self.plan(self.cluster(host + gpu), "--cpu-layers", 3)).stdout)

    def test_what_is_missing_is_named(self):
        self.fails(self.plan(self.cluster("[network]\nlatency_us = 3\n")), 2, "no host to plan for")
        self.fails(self.plan(self.cluster("[nodes.a]\n")), 2, "nodes.a.memory is missing")
        self.fails(self.plan(self.cluster('[nodes.a]\nmemory = "1GiB"\n')), 2, "has not been probed", "stagecoach probe")
        self.fails(self.plan(self.folder / "none.toml"), 2, "the cluster file", "--cluster")
        self.fails(self.plan(self.cluster("[nodes.a]\nmemroy = 1\n")), 2, "cluster.toml:2:10: 'memroy' is not a setting")
        self.fails(run("plan", "--store", self.store), 2, "needs --cluster")
        self.fails(run("plan", "--store", self.store, "--cluster", self.cluster(f'[nodes.a]\nmemory = "1GiB"\n{RATES}'), "--tokens", 5000),
                   2, "positions")

    def test_hosts_without_rates_are_like_this_one(self):
        cache = {"STAGECOACH_CACHE": str(self.folder / "cache")}
        self.succeeds(run("probe", "--quick", "--store", self.folder, environment=cache))
        cluster = self.cluster('[nodes.a]\nmemory = "1GiB"\ndisk_gb_per_s = 1\n')
        result = json.loads(self.succeeds(self.plan(cluster, "--json")).stdout)
        self.assertEqual(result["rates_of_this_machine"], ["a"])

    def test_the_example_is_a_cluster(self):
        result = json.loads(self.succeeds(self.plan(SOURCE / "configs/clusters/four-pcs.toml", "--json")).stdout)
        self.assertEqual(sum(host["layers"] for host in result["hosts"]), 7)


if __name__ == "__main__":
    unittest.main()
