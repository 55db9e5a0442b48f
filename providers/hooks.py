"""The one hook a provider's plugin implements."""

import pluggy

from providers.public import ProviderType

PROJECT = "vopros"
GROUP = "vopros.providers"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Hooks:
    """The hooks; a plugin is a module, installed under the entry-point group."""

    @hookspec
    def vopros_provider(self) -> ProviderType:
        """Return the provider type, named as the entry point is."""
        raise AssertionError("a specification is never called")
