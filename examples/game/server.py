"""The app: a page, a tick loop, and one WebSocket per player."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec
import trio
from attrs import define, field

from examples.common.pages import serve_page
from examples.game.protocol import Arena, FromPlayer, Join, Ping, Problem, Roster, State, Steer, Welcome
from examples.game.world import HEIGHT, SHIP, STAR, STEP, WIDTH, Ship, World
from nexios_trio import (
    Heartbeat,
    Limits,
    NexiosApp,
    Overflow,
    PeerError,
    Rate,
    RateLimit,
    WebSocket,
    WebSocketException,
)

GROUP: Final = "game"
SEND_EVERY: Final = 3  # steps
LATE: Final = 0.25  # seconds that the loop runs after; what a longer stall has cost is lost
MAX_SHIPS: Final = 24
MAX_MISTAKES: Final = 20  # of one connection
INPUTS: Final = RateLimit(Rate(90, burst=180), action="drop")


@define(eq=False)
class Game:
    """The world, and who looks at it."""

    world: World = field(factory=World)
    watching: int = 0
    crowd_changed: bool = False
    """Whether everybody is to be told who is there."""
    someone: trio.Event = field(factory=trio.Event)

    def change_crowd(self, by: int) -> None:
        self.watching += by
        self.crowd_changed = True
        if self.watching:
            self.someone.set()
        else:
            self.someone = trio.Event()

    def state(self) -> State:
        return State(
            round(self.world.tick * STEP * 1000),
            [
                (ship.id, round(ship.x, 1), round(ship.y, 1), round(ship.vx), round(ship.vy), ship.score)
                for ship in self.world.ships.values()
            ],
            [(star.id, round(star.x, 1), round(star.y, 1)) for star in self.world.stars],
        )

    def roster(self) -> Roster:
        return Roster({ship.id: ship.name for ship in self.world.ships.values()}, self.watching)


@asynccontextmanager
async def lifespan(app: NexiosApp) -> AsyncIterator[None]:
    app.state.game = Game()
    yield


app = NexiosApp(
    lifespan=lifespan,
    limits=Limits(message_bytes=1024, inbox_messages=32),
    # Who only watches says nothing: without an answer to the ping such a connection ends.
    heartbeat=Heartbeat(interval=20, timeout=20, message=msgspec.json.encode(Ping()).decode()),
)
serve_page(app, Path(__file__).parent / "static")


async def run() -> None:
    """The tick loop. It sleeps until the next step is due, so that errors of timing do not add up."""
    game: Game = app.state.game
    while True:
        await game.someone.wait()
        due = trio.current_time()
        while game.watching:
            game.world.step()
            if game.crowd_changed:
                game.crowd_changed = False
                await app.channels.send(GROUP, game.roster(), save_history=False)
            if game.world.tick % SEND_EVERY == 0:
                await app.channels.send(GROUP, game.state(), save_history=False)
            due = max(due + STEP, trio.current_time() - LATE)
            await trio.sleep_until(due)


app.start_soon(run)


async def on_invalid(ws: WebSocket, error: PeerError) -> None:
    ws.state.mistakes = getattr(ws.state, "mistakes", 0) + 1
    if ws.state.mistakes > MAX_MISTAKES:
        raise WebSocketException(1008, "too many bad messages")
    await ws.send_json(Problem(error.public_reason))


@app.ws_route("/play", rate_limit=INPUTS, on_invalid=on_invalid)
async def play(ws: WebSocket) -> None:
    await ws.accept()
    game: Game = app.state.game
    ship: Ship | None = None
    await ws.send_json(Arena(WIDTH, HEIGHT, SHIP, STAR))
    async with ws.join(GROUP, overflow=Overflow.CONFLATE("type")):
        game.change_crowd(+1)
        try:
            async for message in ws.iter_json(FromPlayer):
                match message:
                    case Steer(seq, x, y) if ship is not None:
                        game.world.steer(ship, seq, x, y)
                    case Join(name):
                        if problem := refusal(name, ship):
                            await ws.send_json(Problem(problem))
                            continue
                        ship = game.world.enter(name)
                        game.crowd_changed = True
                        await ws.send_json(Welcome(ship.id))
        finally:  # without a checkpoint: the ship goes whatever happens
            if ship is not None:
                game.world.leave(ship)
            game.change_crowd(-1)


def refusal(name: str, ship: Ship | None) -> str:
    if ship is not None:
        return "you have a ship already"
    if not name:
        return "a name needs a visible character"
    return "the arena is full, try again later" if len(app.state.game.world.ships) >= MAX_SHIPS else ""
