// The client side of test_foreign_clients.py, by npm's ws. Prints what happens as lines of JSON.
const WebSocket = require("ws");

const [base] = process.argv.slice(2);
const report = (what, value) => console.log(JSON.stringify([what, value]));

const open = (path, protocols = [], options = {}) =>
  new Promise((resolve, reject) => {
    const ws = new WebSocket(base + path, protocols, options);
    ws.inbox = [];
    ws.on("message", (data, isBinary) => ws.inbox.push([data, isBinary]));
    ws.on("ping", () => (ws.pinged = true));
    ws.on("close", (code, reason) => (ws.closedWith = [code, reason.toString()]));
    ws.on("error", reject);
    ws.on("open", () => resolve(ws));
  });

const until = async (ws, event, done) => {
  while (!done()) await new Promise((resolve) => ws.once(event, resolve));
};

const next = async (ws) => {
  await until(ws, "message", () => ws.inbox.length);
  return ws.inbox.shift();
};

const closed = async (ws) => {
  await until(ws, "close", () => ws.closedWith);
  return ws.closedWith;
};

async function main() {
  for (const perMessageDeflate of [true, false]) {
    const ws = await open("/echo", ["v2", "v1"], { perMessageDeflate });
    report("subprotocol", ws.protocol);
    report("deflate", ws.extensions);
    ws.send("grüße");
    let [data, isBinary] = await next(ws);
    report("text", [data.toString(), isBinary]);
    ws.send(Buffer.from([0, 255]));
    [data, isBinary] = await next(ws);
    report("binary", [[...data], isBinary]);
    ws.send(JSON.stringify({ n: [1, null] }));
    report("json", JSON.parse((await next(ws))[0]));
    ws.send("x".repeat(1 << 20));
    report("big", (await next(ws))[0].length);
    const pong = new Promise((resolve) => ws.once("pong", (data) => resolve(data.toString())));
    ws.ping("are you there?");
    report("pong", await pong);
    ws.close(4001, "moved");
    report("closed", await closed(ws));
  }
  const told = await open("/close");
  report("told", await closed(told));
  await new Promise((resolve) => {
    const ws = new WebSocket(base + "/reject");
    ws.on("unexpected-response", (_request, response) => {
      let body = "";
      response.on("data", (part) => (body += part));
      response.on("end", () => {
        report("rejected", [response.statusCode, response.headers["x-why"], body]);
        resolve();
      });
    });
  });
  const pinged = await open("/echo");
  await until(pinged, "ping", () => pinged.pinged);
  report("pinged", true);
  pinged.close();
  await closed(pinged);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
