"""A practice vCenter: strict, in-process, speaking SOAP over HTTPS with pyVmomi's type tables.

It stands at the far end of the product's data path and shares no code with `vmware/`; what it
answers is written from the WSDL semantics, so that a client that is wrong is told so.

How to add to it
----------------
A managed object is a subclass of `managed_object.LabObject`::

    class Folder(ManagedEntity):
        vim_type = vim.Folder          # names, types and privileges come from pyVmomi's table
        moid_prefix = "group-v"

        @computed("childEntity")       # worked out at every read; call is None for the server's own
        def child_entity(self, call: Call | None) -> list[Any]: ...

        @method("CreateFolder")        # WSDL name; checked against the table when the class is made
        def create_folder(self, call: Call, name: str) -> Any: ...

- Arguments come by position, in the order of the WSDL, deserialised and type-checked; an unset
  optional one is None (an unset array is an empty list). References are pyVmomi references:
  `call.resolve(ref, VirtualMachine)` gives the object or raises ManagedObjectNotFound. Return
  values are plain pyVmomi values; a reference to an object is `thing.ref`.
- Stored properties: `set(name=value, …)` or `update("runtime.powerState", value)`. Values are
  replaced, never changed in place: a reader on another thread has seen them. Both check the type
  and wake WaitForUpdatesEx. A computed property needs `touch()` when what it depends on changed.
- Faults are raised as pyVmomi's own: `raise vim.fault.InvalidName(msg="…", name=name)`.
- The privilege that the type table names for the method, and for each argument, is required
  before the handler runs; `@method(…, privilege="…")` replaces it. A handler whose privilege
  depends on its arguments calls `call.require("VirtualMachine.Config.AddNewDisk", vm)`.
- A method named `…_Task` returns `call.start_task(entity, work)`: `work(task)` runs on a thread
  of its own, reports with `task.progress(percent)`, looks at `task.cancelled`, returns the result
  or raises a fault. Handlers that are not tasks may block; nothing else waits for them.
- `thing.unregister()` takes an object away; later calls answer ManagedObjectNotFound.
- A method that the table knows and no class implements answers MethodNotFound.
- Anything that is not SOAP: `vcenter.route("/folder", handler)`, see `https_server`.

Locking: `vcenter.registry.lock` (reentrant) guards the inventory. Property reads take no lock.
Never hold it while waiting for a guest, a file or a network.
"""
