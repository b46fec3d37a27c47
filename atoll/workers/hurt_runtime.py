"""What an agent does to a trainer on purpose: signals to exactly this process, by pid and start time."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import assert_never

from atoll.schema.harm import Harm
from atoll.workers.agent_messages import Hurt
from atoll.workers.proc_runtime import send_signal


async def hurt(wish: Hurt) -> None:
    """Do it; what passes is over after its time. What happens inside a process is not done from here."""
    harm = wish.order.harm
    match harm:
        case Harm.KILL:
            send_signal(wish.pid, wish.start_ticks, signal.SIGKILL)
        case Harm.STOP:
            send_signal(wish.pid, wish.start_ticks, signal.SIGSTOP)
            if wish.order.for_s > 0:
                await asyncio.sleep(wish.order.for_s)
                send_signal(wish.pid, wish.start_ticks, signal.SIGCONT)
        case Harm.AGENT:
            os.kill(os.getpid(), signal.SIGKILL)
        case Harm.GIL | Harm.SLOW | Harm.DIE | Harm.FLIP:
            pass
        case _:
            assert_never(harm)
