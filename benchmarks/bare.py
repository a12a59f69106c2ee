"""What one would write without the plugin: N calls through the bare client, at most 8 at once; prints their seconds."""

from __future__ import annotations

import asyncio
import sys
import time

import openai


async def main(runs: int) -> float:
    client = openai.AsyncOpenAI()
    limit = asyncio.Semaphore(8)

    async def ask() -> str | None:
        async with limit:
            reply = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "capital?"}], temperature=0
            )
            return reply.choices[0].message.content

    started = time.perf_counter()
    answers = await asyncio.gather(*(ask() for _ in range(runs)))
    seconds = time.perf_counter() - started
    assert len(set(answers)) == 1
    return seconds


if __name__ == "__main__":
    print(asyncio.run(main(int(sys.argv[1]))))
