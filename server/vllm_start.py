"""Starts vLLM's OpenAI server; vLLM's own Python runs this file, with that server's arguments.

The key comes in VLLM_API_KEY and is taken out of the environment: up to vLLM 0.26 it is part of what the compile cache
is looked up by, and is written there, so a new key found nothing that was compiled before.
"""

import os
import runpy
import sys

if __name__ == "__main__":
    del sys.path[0]  # this folder: its modules are not vLLM's
    from vllm import envs

    envs.VLLM_API_KEY = os.environ.pop("VLLM_API_KEY", None)
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
