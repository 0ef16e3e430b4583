"""Frozen language models behind one interface."""

import logging

# where bitsandbytes is installed, peft and transformers import it, and it advises on its installation
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
