"""Every module of the tree loads where it is used, and says what it does."""

import ast
from pathlib import Path

import pytest
import salt.config
import salt.loader

SALT = Path(__file__).resolve().parents[2] / "salt"


def modules(kind):
    """The modules of one kind as (name, its public functions)."""
    found = []
    for path in sorted((SALT / f"_{kind}").glob("*.py")):
        names = [
            node.name
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
        ]
        found.append(pytest.param(path.stem, names, id=path.stem))
    return found


def with_example(docs, name, functions):
    """The functions whose documentation, as Salt shows it, has an example."""
    return {function for function in functions if "CLI Example:" in (docs.get(f"{name}.{function}") or "")}


@pytest.fixture(scope="module")
def runner_docs(master):
    return master.salt_run_cli().run("doc.runner").data


@pytest.fixture(scope="module")
def module_docs(minion):
    return minion.salt_call_cli().run("sys.doc").data


@pytest.fixture(scope="module")
def state_docs(minion):
    return minion.salt_call_cli().run("sys.state_doc").data


@pytest.mark.parametrize(("name", "functions"), modules("runners"))
def test_runner_loads_in_place_and_each_function_has_an_example(runner_docs, name, functions):
    assert with_example(runner_docs, name, functions) == set(functions)


@pytest.mark.parametrize(("name", "functions"), [each for each in modules("modules") if each.id != "vmstate"])
def test_execution_module_loads_on_a_minion_and_each_function_has_an_example(module_docs, name, functions):
    assert with_example(module_docs, name, functions) == set(functions)


def test_vmstate_loads_on_hosts_alone(minion):
    refused = minion.salt_call_cli().run("vmstate.list")
    assert refused.returncode != 0
    assert "this is no" in refused.stderr + refused.stdout


def test_each_function_of_vmstate_has_an_example():
    tree = ast.parse((SALT / "_modules/vmstate.py").read_text())
    public = [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    assert [node.name for node in public if "CLI Example:" not in (ast.get_docstring(node) or "")] == []


@pytest.mark.parametrize(("name", "functions"), modules("states"))
def test_state_module_loads_on_a_minion_and_each_function_has_an_example(state_docs, name, functions):
    documented = {
        function for function in functions if f"{name}.{function}:" in state_docs.get(f"{name}.{function}", "")
    }
    assert documented == set(functions)


@pytest.mark.parametrize(("name", "functions"), modules("engines"))
def test_engine_loads_in_place(master_opts, name, functions):
    engines = salt.loader.engines(master_opts, {}, {}, {})
    assert f"{name}.start" in engines, engines.missing_fun_string(f"{name}.start")


@pytest.mark.parametrize(("name", "functions"), modules("netapi"))
def test_door_of_salt_api_loads_in_place_where_it_is_configured(master_opts, name, functions):
    assert f"{name}.start" not in salt.loader.netapi(master_opts)
    master_opts[name] = {"port": 8443}
    doors = salt.loader.netapi(master_opts)
    assert f"{name}.start" in doors, doors.missing_fun_string(f"{name}.start")
    docs = {f"{name}.{function}": doors[f"{name}.{function}"].__doc__ for function in functions}
    assert with_example(docs, name, functions) == set(functions)


@pytest.mark.parametrize(("name", "functions"), modules("clouds"))
def test_cloud_driver_loads_in_place_and_each_function_has_an_example(master_opts, checkout, name, functions):
    master_opts["providers"] = salt.config.cloud_providers_config(str(checkout / "cloud.providers"))
    # None of the examples is of this driver: what account it is for is everybody's own business.
    master_opts["providers"]["elsewhere"] = {"libcloud": {"driver": "libcloud", "cluster": "lab", "service": "dummy"}}
    drivers = salt.loader.clouds(master_opts)
    assert f"{name}.create" in drivers, drivers.missing_fun_string(f"{name}.create")
    docs = {f"{name}.{function}": drivers[f"{name}.{function}"].__doc__ for function in functions}
    assert with_example(docs, name, functions) == set(functions)
