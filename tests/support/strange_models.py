"""Packages of strangers, installed into a folder of the test's own."""

from pathlib import Path

from tests.support import packages

PLUGIN = '''\
"""A provider by a stranger."""
{before}
from contextlib import asynccontextmanager

from providers.hooks import hookimpl
from providers.public import *
from providers.public import ProviderOptions, ProviderType


class Options(ProviderOptions):
    api_key: str = ""


class Chat:
    def __init__(self, key):
        self.key = key

{stream}


@asynccontextmanager
async def open_it(name, options):
    yield Chat(options.api_key)


{hook}
'''
STREAM = """\
    async def stream(self, request):
        yield Delta("A stranger's answer to: " + request.content)
        yield Finish("strange-1", "stop")
"""
HOOK = """\
@hookimpl
def vopros_provider():
    return ProviderType("{name}", Options, open_it)
"""


def install(
    folder: Path,
    name: str,
    *,
    distribution: str = "strange-models",
    version: str = "1.2.3",
    before: str = "",
    stream: str = STREAM,
    hook: str = HOOK,
) -> Path:
    """Install a package that brings the provider `name`; returns its module's file."""
    module = f"plugin_{distribution.replace('-', '_')}_{name}"
    source = PLUGIN.format(before=before, stream=stream, hook=hook.format(name=name))
    packages.install(
        folder,
        distribution,
        version,
        entry_points=f"[vopros.providers]\n{name} = {module}",
        files={f"{module}.py": source},
    )
    return folder / f"{module}.py"
