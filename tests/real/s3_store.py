"""A store that speaks S3, with a bucket `heat`: its port is printed once the bucket is there. It ends when its input does.

Usage: s3_store.py PORT, 0 for a free one
"""

import logging
import sys
import threading

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

logging.getLogger("werkzeug").setLevel(logging.ERROR)
application = DomainDispatcherApplication(create_backend_app)
one_at_a_time = threading.Lock()


def answer(environ, start_response):
    # S3 puts an object on a condition at once; moto looks first and puts then, and another put may come between.
    with one_at_a_time:
        return application(environ, start_response)


server = make_server("127.0.0.1", int(sys.argv[1]), answer, threaded=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
boto3.client(
    "s3",
    endpoint_url=f"http://127.0.0.1:{server.server_port}",
    region_name="us-east-1",
    aws_access_key_id="k",
    aws_secret_access_key="s",
).create_bucket(Bucket="heat")
print(server.server_port, flush=True)
sys.stdin.read()
