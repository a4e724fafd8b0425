"""A service that restores images: POST the bytes of an image file to /restore, and get a PNG back.

SAM4IR_WEIGHTS=experiments/x uvicorn service:app
"""

import os

from fastapi import FastAPI, HTTPException, Request, Response
from starlette.concurrency import run_in_threadpool

import sam4ir

WAITING, BYTES, PIXELS = 256, 32_000_000, 50_000_000  # requests in line; the largest file and image
network = sam4ir.load(os.environ["SAM4IR_WEIGHTS"], tile=512)
app = FastAPI()
waiting = 0


async def body_of(request: Request) -> bytes:
    """Return the body of a request, which may be as large as BYTES."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > BYTES:
            raise HTTPException(413, f"the file is larger than {BYTES} bytes")
    return bytes(body)


@app.post("/restore")
async def restore(request: Request) -> Response:
    """Restore the image file in the body of the request."""
    global waiting
    if waiting >= WAITING:
        raise HTTPException(503, "too many requests are waiting", {"Retry-After": "5"})
    waiting += 1
    try:
        png = await run_in_threadpool(network.restore_file, await body_of(request), most_pixels=PIXELS)
    except sam4ir.UserError as error:
        raise HTTPException(422, str(error)) from error
    finally:
        waiting -= 1
    return Response(png, media_type="image/png")
