# SPDX-License-Identifier: Apache-2.0
"""Another SGLang, a changed signature, a hook that was not applied: a clear error, and no server without what was
asked for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import vt_sglang
from vt_sglang.adapter import compat, plugin


def _pretend_version(folder: Path, version: str) -> dict[str, str]:
    """An environment in which SGLang says it is of another version."""
    info = folder / f"sglang-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sglang\nVersion: {version}\n")
    return os.environ | {"PYTHONPATH": str(folder)}


def _launch(folder: Path, model: Path, version: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sglang.launch_server", "--model-path", str(model), *arguments],
        env=_pretend_version(folder, version),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_another_version_stops_a_server_that_wants_virtual_tensors(tmp_path: Path, model: Path) -> None:
    done = _launch(tmp_path, model, "0.5.23", "--radix-cache-backend", "vtensor")
    assert done.returncode != 0
    assert "made for SGLang 0.5.17, and 0.5.23 is installed" in done.stderr
    assert "pip install sglang==0.5.17" in done.stderr
    assert "Traceback" not in done.stderr


def test_another_version_leaves_other_servers_alone(tmp_path: Path, model: Path) -> None:
    """`--help` stands for a server here: SGLang gets as far as its own arguments."""
    done = _launch(tmp_path, model, "0.5.23", "--help")
    assert done.returncode == 0, done.stderr
    assert "--vtensor-page-bytes" not in done.stdout
    assert "Servers that do not ask for it run as ever" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["--radix-cache-backend", "vtensor"], True),
        (["--radix-cache-backend=vtensor", "--port", "1"], True),
        (["--radix-cache-backend", "flexkv"], False),
        (["--attention-backend", "vtensor"], False),
        ([], False),
    ],
)
def test_whether_a_command_line_asks(arguments: list[str], asked: bool) -> None:
    assert plugin._requested(arguments) is asked


def test_missing_sglang_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise compat.PackageNotFoundError(name)

    monkeypatch.setattr(compat, "version", missing)
    with pytest.raises(compat.IncompatibleSGLangError, match=r"pip install sglang==0\.5\.17"):
        compat.check_version()


@pytest.mark.usefixtures("plugged")
def test_signatures_of_the_supported_release_pass() -> None:
    compat.check_version()
    compat.check_signatures()


@pytest.mark.usefixtures("plugged")
def test_changed_signatures_are_all_named() -> None:
    changed = {
        "sglang.srt.mem_cache.allocation.alloc_for_decode": ("batch",),
        "sglang.srt.mem_cache.allocation.alloc_for_nothing": ("batch",),
        "sglang.srt.no_such_module.function": (),
    }
    with pytest.raises(compat.IncompatibleSGLangError) as error:
        compat.check_signatures(changed)
    message = str(error.value)
    assert "alloc_for_decode takes (batch, token_per_req), not (batch)" in message
    assert "alloc_for_nothing is missing" in message
    assert "no_such_module" in message


@pytest.mark.usefixtures("plugged")
def test_a_hook_that_was_not_applied_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry

    from vt_sglang.adapter import hooks

    hooks.verify()
    target = "sglang.srt.managers.scheduler.Scheduler.run_batch"
    monkeypatch.setattr(HookRegistry, "_patched", HookRegistry._patched - {target})
    with pytest.raises(RuntimeError, match=target.replace(".", r"\.")):
        hooks.verify()


@pytest.mark.usefixtures("plugged")
def test_pools_that_are_not_ours_are_noticed() -> None:
    """SGLang asks for the tree after it built the pools; if they are its own, the hooks did not work."""
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams

    from vt_sglang.adapter.tree_cache import VTensorCache

    params = CacheInitParams(
        disable=False, req_to_token_pool=object(), token_to_kv_pool_allocator=object(), page_size=1
    )
    with pytest.raises(RuntimeError, match="where virtual tensors were asked for"):
        VTensorCache(params)


@pytest.mark.usefixtures("plugged")
def test_failed_plugin_leaves_a_backend_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.mem_cache import registry

    monkeypatch.setattr(registry, "_RADIX_CACHE_REGISTRY", {})
    monkeypatch.setattr(sys, "argv", ["server"])
    plugin._failed(ImportError("cannot import name '_core'"))
    factory = registry.get_radix_cache_factory("vtensor")
    assert factory is not None
    with pytest.raises(RuntimeError, match="its compiled core cannot be loaded"):
        factory(None)


def test_sources_that_hide_what_is_installed_are_told_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["server", "--radix-cache-backend", "vtensor"])
    monkeypatch.setattr(vt_sglang, "__file__", str(tmp_path / "vt_sglang/__init__.py"))
    missing = ImportError("cannot import name '_core'")
    with pytest.raises(SystemExit, match="install the package again"):
        plugin._failed(missing)
    (tmp_path / "csrc").mkdir()
    with pytest.raises(SystemExit, match=f"its source folder, {tmp_path}, which hides .* run in another folder"):
        plugin._failed(missing)


def test_failed_plugin_ends_a_process_that_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["server", "--radix-cache-backend", "vtensor"])
    with pytest.raises(SystemExit, match="vt-sglang cannot be used"):
        plugin._failed(RuntimeError("boom"))
