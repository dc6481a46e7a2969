"""The face of the Intel Trust Authority (Amber) Key Broker Service, ``/kbs/v1``."""
