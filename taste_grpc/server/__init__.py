"""The gRPC server: services, validation, errors, health, drain. Imports no torch."""

from taste_grpc.server.app import DIALOGUE_SERVICE, TASTE_SERVICE, MakeEngine, TasteServer, calm_collector, run_server

__all__ = ["DIALOGUE_SERVICE", "TASTE_SERVICE", "MakeEngine", "TasteServer", "calm_collector", "run_server"]
