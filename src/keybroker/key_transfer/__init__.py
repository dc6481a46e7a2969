"""Keys that are created, kept and handed to TEEs which satisfy a key's transfer policy.

The second face of the broker, that of the Intel Trust Authority (Amber) Key Broker Service:
users and their permissions, transfer policies, keys in a key manager (KMIP, Vault or the broker's
own storage), and the transfer of a key, wrapped, to whoever attests.
"""
