"""The WebSocket of voice conversations, and a page to talk with."""

from taste_grpc.gateway.app import make_app
from taste_grpc.gateway.conversations import Authenticate, Conversations, Session
from taste_grpc.gateway.gateway import Gateway

__all__ = ["Authenticate", "Conversations", "Gateway", "Session", "make_app"]
