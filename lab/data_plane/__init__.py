"""The data plane of the practice vCenter and its ESXi hosts: everything that is HTTP but not SOAP.

`/folder` (datastore files), tickets, `/nfc` (export and import leases), the REST session and tags,
and `/screen`. vCenter and every host answer on an address of their own, as the real ones do.
"""
