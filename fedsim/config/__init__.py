"""From `scenario=NAME` and overrides to a checked, typed configuration and its parts.

Read in this order: `settings` (the typed top level), `composition` (the whole path), `sources`
(files), `overrides` (Hydra's grammar), `specs` (checking parts), `targets` (the allow-list).
"""

from fedsim.config.composition import Config, build_part, compose

__all__ = ["Config", "build_part", "compose"]
