"""Launch files: what `lookback bench launches` wrote, bound to this process's memory and launched."""

import json
import pathlib

FORMAT = 1


class Case:
    """One operation on one shape."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.folder = self.path.parent
        self.json = json.loads(self.path.read_text())
        if self.json.get("format") != FORMAT:
            raise ValueError(f"{path}: format {self.json.get('format')}, this program reads {FORMAT}")
        self.name = self.json["name"]
        self.operation = self.json["operation"]
        self.family = self.json["family"]
        self.dtype = self.json["dtype"]
        self.shape = {name: extent for name, extent in self.json["shape"]}
        self.bytes = self.json["bytes"]
        self.flops = self.json["flops"]
        self.buffers = self.json["buffers"]
        self.sm_count = self.json["device"]["sm_count"]

    @property
    def special(self):
        """What is special about it, between the operation and the element type in its name: `scalar, one group`."""
        words = self.name.split(" ")
        return " ".join(words[1 : len(words) - 2])

    def rotates(self, index):
        """Whether every set of tensors has its own. Workspaces are one, as they are for a host that launches."""
        return self.buffers[index]["role"] != "scratch"

    def set_bytes(self):
        """Bytes of one set of tensors."""
        return sum(buffer["bytes"] for index, buffer in enumerate(self.buffers) if self.rotates(index))

    def outputs(self):
        """Indices of what a launch writes and its caller reads."""
        return [index for index, buffer in enumerate(self.buffers) if buffer["role"] in ("output", "both")]


def read(folder, wanted=""):
    """The cases of a folder of the family `wanted`, or where there is none, those whose name contains it."""
    cases = [Case(path) for path in sorted(pathlib.Path(folder).glob("*.json"))]
    family = [case for case in cases if case.family == wanted]
    return family or [case for case in cases if wanted in case.name]


class Binding:
    """A case whose buffers have addresses; `logs` is what the driver's compiler said of each kernel."""

    def __init__(self, driver, case, addresses):
        self.driver = driver
        self.case = case
        self.addresses = addresses
        self.logs = {}
        self.setup = [self._prepare(event) for event in case.json["setup"]]
        self.launches = [self._prepare(event) for event in case.json["launches"]]

    def set_up(self, stream):
        """Does what the host did before the first launch. Nothing else may use the buffers meanwhile."""
        for event in self.setup:
            event(stream)

    def launch(self, stream):
        """Launches the case once."""
        for event in self.launches:
            event(stream)

    def _address(self, place):
        buffer, offset = place
        return self.addresses[buffer] + offset

    def _prepare(self, event):
        """A function of the stream that does the event."""
        driver, kind = self.driver, event["kind"]
        if kind == "launch":
            return self._prepare_launch(event)
        to = self._address(event["to"])
        if kind == "upload":
            contents = (self.case.folder / event["data"]).read_bytes()
            return lambda stream: driver.upload(to, contents)
        if kind == "copy":
            source, count = self._address(event["from"]), event["bytes"]
            return lambda stream: driver.copy(to, source, count, stream)
        if kind == "fill":
            shape = [event[key] for key in ("value", "width", "columns", "rows", "pitch")]
            return lambda stream: driver.fill(to, *shape, stream)
        raise ValueError(f"{self.case.path}: {kind} is nothing that this program does")

    def _prepare_launch(self, event):
        parameters = relocate(event, self.addresses)
        shared, cooperative = event["dynamic_shared"], event["cooperative"]
        function = self.driver.function(self.case.folder / event["ptx"], event["entry"], shared)
        self.logs[event["entry"]] = function.log.strip()
        grid, block, launch = event["grid"], event["block"], self.driver.launch
        return lambda stream: launch(function, grid, block, shared, cooperative, parameters, stream)


def relocate(event, addresses):
    """The parameters of a launch with the addresses of its buffers."""
    parameters = bytearray.fromhex(event["parameters"])
    for pointer in event["pointers"]:
        at = pointer["at"]
        if any(parameters[at : at + 8]):
            raise ValueError(f"{event['entry']}: there is no room for {pointer['argument']}")
        address = addresses[pointer["buffer"]] + pointer["offset"]
        parameters[at : at + 8] = address.to_bytes(8, "little")
    return bytes(parameters)


def replay(driver, case):
    """Sets up and launches a case once in memory of the driver; gives the bytes of its buffers by name, before and after."""
    addresses = [driver.allocate(buffer["bytes"]) for buffer in case.buffers]
    binding = Binding(driver, case, addresses)

    def contents():
        held = [driver.download(address, buffer["bytes"]) for address, buffer in zip(addresses, case.buffers)]
        return {buffer["name"]: value for buffer, value in zip(case.buffers, held)}

    binding.set_up(0)
    before = contents()
    binding.launch(0)
    return before, contents()


def differences(case, before, after):
    """What is not as the file says it is, byte by byte; and an output that was so before the launch, which shows nothing."""
    expected = case.json["expected"]
    if not expected:
        raise ValueError(f"{case.path}: nothing is said of what it writes; record with --small")
    found = []
    for name, path in expected.items():
        wanted = (case.folder / path).read_bytes()
        if after[name] != wanted:
            first = next(at for at, (a, b) in enumerate(zip(after[name], wanted)) if a != b)
            found.append(f"{name} differs from byte {first} of {len(wanted)} on")
        elif before[name] == wanted:
            found.append(f"{name} was so before the launch")
    return found
