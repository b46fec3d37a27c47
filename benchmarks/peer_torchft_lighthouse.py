"""torchft's own `torchft_lighthouse` command, for an installation whose scripts are not beside its interpreter."""

from torchft._torchft import lighthouse_main

lighthouse_main()
