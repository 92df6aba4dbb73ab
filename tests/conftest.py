"""What every test gets: no network, and hypothesis profiles (`CI` in the environment: the same examples each time)."""

from __future__ import annotations

import os

from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["FEDMTL_CACHE_DIR"] = "off"  # tests of the cache name a folder of their own
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is: threads that wait must not spin beside others

settings.register_profile("local", deadline=None)  # the first torch call is slow
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")
