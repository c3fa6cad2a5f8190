import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from jaxgen.jobs.benchmark_runs import share

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"


@pytest.fixture(scope="module")
def local():
    spec = importlib.util.spec_from_file_location("launch_local", LAUNCH / "local.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def signal_handlers():
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def test_every_process_gets_its_rank(local, capfd):
    names = ("COORDINATOR", "PROCESS_COUNT", "PROCESS_ID")
    code = f"import os, sys; print(*(os.environ['JAXGEN_' + name] for name in {names})); print('e', file=sys.stderr)"
    assert local.run([sys.executable, "-c", code], local.environments(2, 1, cpu=True)) == 0
    out, err = capfd.readouterr()
    first, second = (line.split() for line in sorted(out.splitlines()))
    assert first[0] == "[0]"
    assert second[0] == "[1]"
    assert first[1] == second[1]  # one coordinator
    assert first[1].startswith("127.0.0.1:")
    assert (first[2:], second[2:]) == (["2", "0"], ["2", "1"])
    assert sorted(err.splitlines()) == ["[0] e", "[1] e"]


def test_devices(local, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_foo=1 --xla_force_host_platform_device_count=8")
    for environment in local.environments(2, 4, cpu=True):
        assert environment["XLA_FLAGS"] == "--xla_foo=1 --xla_force_host_platform_device_count=4"
        assert environment["JAX_PLATFORMS"] == "cpu"
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in local.environments(2, 2, cpu=False)] == ["0,1", "2,3"]


def test_dry_run_prints_commands_that_run(local, capfd):
    assert local.main(["--dry-run", "--cpu", "--processes=2", "--shares", "--", "--config=a b.py"]) == 0
    lines = [shlex.split(line) for line in capfd.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["env", "env"]
    assert [part for line in lines for part in line if part.startswith("JAXGEN_SHARE_INDEX")] == [f"JAXGEN_SHARE_INDEX={i}" for i in (0, 1)]
    assert all(line[-3:] == ["-m", "jaxgen.main", "--config=a b.py"] for line in lines)


@pytest.mark.parametrize(("death", "expected"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 137)])
def test_one_failure_ends_the_others(local, capfd, death, expected):
    stubborn = "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    code = f"import os, signal, sys, time\nif os.environ['JAXGEN_PROCESS_ID'] == '1': {death}\n{stubborn}"
    began = time.monotonic()
    assert local.run([sys.executable, "-c", code], local.environments(2, 1, cpu=True), grace=0.5) == expected
    assert time.monotonic() - began < 30
    assert "process 1 ended with exit code" in capfd.readouterr().err


def test_signals_reach_all_processes(tmp_path):
    (tmp_path / "jaxgen").mkdir()
    (tmp_path / "jaxgen" / "__init__.py").touch()
    (tmp_path / "jaxgen" / "main.py").write_text(
        "import signal, sys, time\n"
        "def save(*_):\n    print('saved', flush=True)\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\nprint('ready', flush=True)\ntime.sleep(60)\n"
    )
    command = [sys.executable, LAUNCH / "local.py", "--processes=2", "--cpu", "--", "--config=x"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline() for _ in range(2)]
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=30)
    assert sorted(lines) == ["[0] ready\n", "[1] ready\n"]
    assert sorted(rest.splitlines()) == ["[0] saved", "[1] saved"]
    assert process.returncode == 0


def test_nothing_to_run_is_exit_code_2(local):
    with pytest.raises(SystemExit) as error:
        local.main(["--processes=2"])
    assert error.value.code == 2


@pytest.mark.parametrize("script", ["tpu_vm.sh", "slurm.sbatch"])
def test_scripts_parse(script):
    assert subprocess.run(["bash", "-n", LAUNCH / script], capture_output=True, text=True).stderr == ""


def tpu_vm(*arguments, **environment):
    base = {"PATH": os.environ["PATH"], "PROJECT": "p", "ZONE": "z", "TPU_NAME": "t", "ACCELERATOR": "v5litepod-16", "RUNTIME": "r"}
    command = ["bash", LAUNCH / "tpu_vm.sh", *arguments]
    return subprocess.run(command, env=base | environment, capture_output=True, text=True)


def test_tpu_vm_dry_run():
    create = tpu_vm("--dry-run", "create").stdout
    assert create.startswith(
        "gcloud compute tpus queued-resources create t --project=p --zone=z --node-id=t --accelerator-type=v5litepod-16"
    )
    assert "--spot" not in create
    assert "--spot" in tpu_vm("--dry-run", "create", SPOT="1").stdout
    run = tpu_vm("--dry-run", "run", "--config=a.py:x,y", "--workdir=gs://b/with space").stdout
    assert "--worker=all" in run
    assert "jaxgen.main" in run
    for action in ("status", "setup", "stop", "delete"):
        result = tpu_vm("--dry-run", action)
        assert (result.returncode, result.stderr) == (0, "")
        assert "gcloud compute tpus" in result.stdout


def test_tpu_vm_quotes_arguments_for_the_remote_shell(tmp_path):
    """A stand-in for gcloud runs the remote command here, so that what Python receives can be seen."""
    (tmp_path / "jaxgen").mkdir()
    python = tmp_path / "jaxgen-env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/bash\nprintf "<%s>" "$@"\n')
    gcloud = tmp_path / "gcloud"
    gcloud.write_text('#!/bin/bash\nfor a in "$@"; do [[ $a == --command=* ]] && exec bash -c "${a#--command=}"; done\n')
    for file in (python, gcloud):
        file.chmod(0o755)
    result = tpu_vm("run", "--config=a.py", "--workdir=gs://b/$HOME 'x'", PATH=f"{tmp_path}:{os.environ['PATH']}", HOME=str(tmp_path))
    assert result.stdout == "<-u><-m><jaxgen.main><--config=a.py><--workdir=gs://b/$HOME 'x'>"
    assert (tmp_path / "jaxgen.pid").read_text().strip().isdigit()


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [(["creat"], {}, "unknown action"), (["create"], {"PROJECT": ""}, "PROJECT is not set"), (["run"], {}, "nothing to run")],
)
def test_tpu_vm_wrong_use(arguments, environment, words):
    result = tpu_vm(*arguments, **environment)
    assert result.returncode == 2
    assert words in result.stderr


@pytest.fixture
def slurm(tmp_path):
    """Stand-ins for srun and scontrol; srun runs its command here."""
    for name, body in (("srun", 'shift; exec "$@"'), ("scontrol", f'echo "$@" >> {tmp_path}/scontrol.log')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "python").write_text("#!/bin/bash\ntrap 'echo saved; exit 0' TERM\necho ready\nfor i in {1..300}; do sleep 0.1; done\n")
    (tmp_path / "fails").write_text("#!/bin/bash\nexit 3\n")
    for name in ("python", "fails"):
        (tmp_path / name).chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}, tmp_path


@pytest.mark.parametrize(("restarts", "requeued"), [("3", True), ("20", False)])
def test_slurm_saves_and_requeues_at_the_time_limit(slurm, restarts, requeued):
    environment, folder = slurm
    command = ["bash", LAUNCH / "slurm.sbatch", "--config=x"]
    with subprocess.Popen(command, env=environment | {"SLURM_RESTART_COUNT": restarts}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        rest, _ = process.communicate(timeout=30)
    assert "saved" in rest
    assert process.returncode == 0
    assert (folder / "scontrol.log").exists() == requeued


def test_slurm_returns_the_exit_code_of_a_failed_run(slurm):
    environment, folder = slurm
    command = ["bash", LAUNCH / "slurm.sbatch", "--config=x"]
    result = subprocess.run(command, env=environment | {"JAXGEN_PYTHON": str(folder / "fails")}, capture_output=True)
    assert result.returncode == 3
    assert not (folder / "scontrol.log").exists()


def test_jobset():
    (jobset,) = yaml.safe_load_all((LAUNCH / "gke_jobset.yaml").read_text())
    assert jobset["kind"] == "JobSet"
    (slices,) = jobset["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert job["parallelism"] == job["completions"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    x, y = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert x * y == job["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
    assert container["command"][:4] == ["python", "-u", "-m", "jaxgen.main"]


def test_table_job_gives_every_pod_its_share(monkeypatch):
    (job,) = yaml.safe_load_all((LAUNCH / "gke_table.yaml").read_text())
    assert (job["kind"], job["spec"]["completionMode"]) == ("Job", "Indexed")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"][:4] == ["python", "-u", "-m", "jaxgen.main"]
    shares = []
    for index in range(job["spec"]["completions"]):
        for entry in [*container["env"], {"name": "JOB_COMPLETION_INDEX", "value": str(index)}]:
            monkeypatch.setenv(entry["name"], entry["value"])
        shares += share(list(range(20)), "auto")
    assert sorted(shares) == list(range(20))


def test_shares_on_one_machine_do_not_end_each_other(local, capfd):
    dies = "if os.environ['JAXGEN_SHARE_INDEX'] == '1': sys.exit(3)"
    code = f"import os, sys, time\n{dies}\ntime.sleep(1); print(os.environ['JAXGEN_SHARE_COUNT'])"
    environments = local.environments(2, 1, cpu=True, shares=True)
    assert "JAXGEN_COORDINATOR" not in environments[0].keys() - os.environ.keys()
    assert local.run([sys.executable, "-c", code], environments, grace=0.1, joined=False) == 3
    assert capfd.readouterr().out == "[0] 2\n"
