"""How a process finds the others: from options, variables or the cluster; alone on a laptop."""

import jax
import pytest
from jax._src import cloud_tpu_init

from jepa_vl.cli.main import main
from jepa_vl.config import ConfigError
from jepa_vl.training import distributed

SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "node[01-04]", "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
}  # fmt: skip
MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}  # fmt: skip
JOB = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}
OURS = {"JEPA_VL_COORDINATOR": "h0:1234", "JEPA_VL_PROCESSES": "4", "JEPA_VL_PROCESS": "2"}
TOLD = {
    "coordinator_address": "h0:1234", "num_processes": 4, "process_id": 2,
    "cluster_detection_method": "deactivate",
}  # fmt: skip
FOUND = ("SLURM_", "OMPI_", "KUBERNETES_", "JOB_", "TPU_", "JEPA_VL_", "CUDA_")


@pytest.fixture
def called(monkeypatch):
    """The arguments that jax.distributed.initialize is called with, in an environment."""
    calls = []
    for name in list(distributed.os.environ):
        if name.startswith(FOUND):
            monkeypatch.delenv(name)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **words: calls.append(words))

    def initialize(variables, *options, **values):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        distributed.initialize(*options, **values)
        return calls.pop() if calls else None

    return initialize


@pytest.fixture
def on_tpu(monkeypatch):
    monkeypatch.setattr(cloud_tpu_init, "running_in_cloud_tpu_vm", True)
    monkeypatch.delenv("JAX_PLATFORMS")


@pytest.mark.parametrize(
    "variables",
    [
        {},
        # A shell of a job, a script without srun, a step of one task, mpirun -n 1, a single pod.
        {k: v for k, v in SLURM.items() if "STEP" not in k},
        SLURM | {"SLURM_STEP_NUM_TASKS": "1"},
        MPI | {"OMPI_COMM_WORLD_SIZE": "1"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        JOB | {"JOB_COMPLETION_INDEX": "0"},
        {"JEPA_VL_COORDINATOR": "h0:1", "JEPA_VL_PROCESSES": "1", "JEPA_VL_PROCESS": "0"},
    ],
)
def test_one_process_meets_nobody(called, variables):
    assert called(variables) is None


def test_slurm_leaves_all_to_jax_but_the_devices_of_a_host_with_one_task(called):
    base = {"cluster_detection_method": "slurm", "num_processes": 4}
    base["heartbeat_timeout_seconds"] = 100
    assert called(SLURM) == base | {"local_device_ids": []}
    # JAX gives each task a GPU, of those that it sees ...
    eight = {"SLURM_STEP_TASKS_PER_NODE": "4", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    assert called(SLURM | eight) == base
    # ... which a task that sees its own GPUs alone cannot use.
    assert called({"CUDA_VISIBLE_DEVICES": "0"}) == base | {"local_device_ids": []}
    assert called({"CUDA_VISIBLE_DEVICES": "", "SLURM_STEP_TASKS_PER_NODE": "2,1(x2)"}) == base
    cluster = jax._src.clusters.SlurmCluster
    assert cluster.is_env_present() and cluster.get_process_id() == 2  # so JAX knows the rest


def test_open_mpi_is_left_to_jax_unless_it_does_not_say_where_rank_0_is(called):
    want = {"cluster_detection_method": "ompi", "heartbeat_timeout_seconds": 100}
    assert called(MPI) == want
    cluster = jax._src.clusters.OmpiCluster
    assert cluster.is_env_present() and cluster.get_process_id() == 3
    assert called({"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}) == want | {"local_device_ids": []}


def test_open_mpi_that_does_not_say_where_rank_0_is_is_refused(called):
    variables = {k: v for k, v in MPI.items() if "orte" not in k}
    with pytest.raises(ConfigError, match=r"--process \$OMPI_COMM_WORLD_RANK"):
        called(variables)
    assert called({}, "h0:1234", "4", "2") == TOLD | {"heartbeat_timeout_seconds": 100}


def test_an_indexed_job_tells_its_number(called, monkeypatch):
    with pytest.raises(ConfigError, match="set JEPA_VL_COORDINATOR=HOST:PORT"):
        called(JOB)
    ours = {"JEPA_VL_COORDINATOR": "h0:1234", "JEPA_VL_PROCESSES": "4"}
    job = {"process_id": 1, "heartbeat_timeout_seconds": 30}
    assert called({**ours, "JEPA_VL_HEARTBEAT_SECONDS": "30"}) == TOLD | job
    for name in ours:
        monkeypatch.delenv(name)
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: name)
    assert called({})["initialization_timeout"] == 300  # JAX asks the cluster


@pytest.mark.usefixtures("on_tpu")
def test_a_tpu_vm_leaves_all_to_jax_unless_another_platform_is_wanted(called):
    assert called({}) == {"initialization_timeout": 300, "heartbeat_timeout_seconds": 100}
    assert called({"TPU_SKIP_MDS_QUERY": "1"}) is None  # nobody could be asked
    assert called({"TPU_WORKER_HOSTNAMES": "a,b"})["initialization_timeout"] == 300
    assert called({"JAX_PLATFORMS": "cpu"}) is None


@pytest.mark.parametrize("cluster", [{}, SLURM, MPI, JOB])
def test_what_is_told_counts_more_than_any_cluster_and_options_more_than_variables(called, cluster):
    beat = {"heartbeat_timeout_seconds": 100}
    assert called(cluster | OURS) == TOLD | beat
    told = called({}, "h1:5", None, "3")
    assert told == TOLD | beat | {"coordinator_address": "h1:5", "process_id": 3}


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ((None, "2", "0"), "--coordinator = '': give --coordinator HOST:PORT"),
        (("h:1", None, "0"), "--processes = '': give"),
        (("h:1", "2", None), "--process = '': give"),
        (("h", "2", "0"), "--coordinator = 'h': HOST:PORT"),
        (("h:1", "two", "0"), "--processes = 'two': a whole number, 1 or more"),
        (("h:1", "2", "-1"), "--process = '-1': a whole number, 0 or more"),
        (("h:1", "2", "2"), "--process = 2: below 2"),
    ],
)
def test_all_three_or_none(called, tmp_path, capsys, options, rule):
    with pytest.raises(ConfigError) as error:
        called({}, *options)
    assert rule in str(error.value)
    names = zip(distributed.OPTIONS, options, strict=True)
    words = [f"{name}={value}" for name, value in names if value is not None]
    train = ["train", "--config", "tests/configs_tiny.py", "--workdir", str(tmp_path / "run")]
    assert main([*train, *words]) == 5
    assert rule in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_heartbeat_that_is_no_number_is_refused(called):
    with pytest.raises(ConfigError, match="JEPA_VL_HEARTBEAT_SECONDS"):
        called(OURS | {"JEPA_VL_HEARTBEAT_SECONDS": "soon"})
