"""Which advanced settings (`extraConfig`) of a VM go along when it is built again.

A setting that is not known to be safe stays behind: many are the host's own records of where the VM
lies and what it is doing (`uuid.location`, `migrate.*`, `*.redo`, `*ctk*`, `sched.swap.*`), and
would break or mislead the new VM. Those go without saying; what else stays behind is told. Pure.
Source: design notes section 5, “.vmx minimum”.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_VALUE_MAX = 65535  # characters; what a host takes

_KEPT = re.compile(
    r"""
      (pciBridge|ethernet|scsi|sata|nvme)\d+\.pciSlotNumber
    | (usb|ehci|usb_xhci|vmci0|hdaudio|sound)\.pciSlotNumber
    | pciBridge\d+\.(present|virtualDev|functions)
    | ethernet\d+\.(ctxPerDev|coalescing\w*|pnicFeatures|udpRSS|emuRecvMode)
    | hpet0\.present | smc\.present | mce\.enable
    | disk\.enableUUID
    | (devices|mem)\.hotplug
    | isolation\.(?!.*password).*
    | RemoteDisplay\.maxConnections
    | tools\.(syncTime|guest\.desktop\.autolock|setInfo\.sizeLimit|guestlib\.enableHostInfo)
    | time\.synchronize\..*
    | guestinfo\.(metadata|userdata|vendordata)(\.encoding)?
    | (svga|mks|keyboard|cpuid|monitor_control|rtc)\.(?!.*password).*
    | hypervisor\.cpuid\.v0 | vhv\.enable | vvtd\.enable
    | numa\.vcpu\..* | numa\.autosize\.(once|vcpu\.maxPerVirtualNode)
    | sched\.(cpu\.latencySensitivity|mem\.pshare\.enable|mem\.lpage\.\w+)
    | log\.(keepOld|rotateSize|throttle\w*) | logging
    """,
    re.VERBOSE | re.IGNORECASE,
)
_HOSTS_OWN = re.compile(
    r"""
      .*ctk.* | .*\.redo | nvram | extendedConfigFile
    | (uuid|vc|viv|migrate|checkpoint|vmotion|encryption|vtpm|vmware\.tools)\..*
    | sched\.swap\..* | guestinfo\..* | toolsInstallManager\..* | virtualHW\..*
    | softPowerOff | cleanShutdown | config\.readOnly
    | numa\.autosize\.cookie | monitor\.phys_bits_used | tools\.(remindInstall|upgrade\.policy)
    | (pciBridge|ethernet|scsi|sata|nvme|ide|usb|vmci|sound|hdaudio|floppy|serial|parallel)\d*
      (:\d+)?\.(fileName|present|id|address|generatedAddress|dvs\..*|networkName|virtualDev)
    """,
    re.VERBOSE | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptSettings:
    kept: tuple[tuple[str, str], ...]
    left: tuple[str, ...]  # keys that stay behind and might be missed


def kept_settings(settings: Iterable[tuple[str, str]], *, same_nics: bool) -> KeptSettings:
    """Sort the settings of a captured VM.

    Args:
        same_nics: the new VM has the same network adapters in the same order, so that their
            settings, which go by number, still fit.
    """
    kept: dict[str, tuple[str, str]] = {}
    left: list[str] = []
    for key, value in settings:
        numbered = key.lower().startswith("ethernet")
        fits = _KEPT.fullmatch(key) and len(value) <= _VALUE_MAX and (same_nics or not numbered)
        if fits and value:
            kept[key.lower()] = (key, value)
        elif value and not fits and not _HOSTS_OWN.fullmatch(key):
            left.append(key)
    return KeptSettings(kept=tuple(kept.values()), left=tuple(dict.fromkeys(left)))
