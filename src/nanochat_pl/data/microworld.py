"""The former place of `write_microworld`, from where programs may still import it; see `nanochat_pl.world.write`."""

from nanochat_pl.world.write import write_microworld

__all__ = ["write_microworld"]
