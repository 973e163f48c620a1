"""What the command line promises and this version does not have yet: refused with a sentence, never ignored.

Exit code 2. The keys are flags without their dashes. A test compares the table, with what is built, against the full
list.
"""

from __future__ import annotations

FLAGS: dict[str, str] = {
    "enable-lora": "adapters are not built yet; merge the adapter into the weights and serve the merged folder",
    "lora-modules": "adapters are not built yet; merge the adapter into the weights and serve the merged folder",
    "reasoning-parser": "reasoning is not separated from the answer yet; it arrives as content",
    "speculative-config": "speculation is not built yet; leave the flag out",
    "sse-keep-alive": "keep-alive comments are not built yet; they are off, which is the default everywhere",
    "stream-interval": "every token is streamed as it comes; leave the flag out",
    "tensor-parallel-size": "one engine uses one device; leave the flag out",
}

ALIASES: dict[str, str] = {"tp": "tensor-parallel-size"}
