"""The CUDA driver through ctypes: what it takes to load PTX and launch it on anybody's stream.

The library may be any file with the driver's interface, so that the very same code is tested without a GPU.
"""

import ctypes
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_ushort, c_ubyte, c_void_p

LOG_BYTES = 1 << 16

# CUjit_option
INFO_LOG, INFO_LOG_BYTES, ERROR_LOG, ERROR_LOG_BYTES, LOG_VERBOSE = 3, 4, 5, 6, 12
# CUfunction_attribute
MAX_DYNAMIC_SHARED = 8
# CUdevice_attribute
MULTIPROCESSORS, MAJOR, MINOR = 16, 75, 76
# CUlaunchAttributeID
COOPERATIVE = 2
# Shared memory that a block has without asking.
DEFAULT_SHARED = 48 * 1024


class DriverError(RuntimeError):
    """The driver refused a call."""


class _Attribute(ctypes.Structure):
    # CUlaunchAttribute: the value is a union of 64 bytes, of which a cooperative launch uses the first word.
    _fields_ = [("id", c_uint), ("padding", c_uint), ("value", c_uint * 16)]


class _Config(ctypes.Structure):
    # CUlaunchConfig
    _fields_ = [
        ("grid", c_uint * 3),
        ("block", c_uint * 3),
        ("shared", c_uint),
        ("stream", c_void_p),
        ("attributes", POINTER(_Attribute)),
        ("count", c_uint),
    ]


class Function:
    """A kernel, with what the driver's compiler said of its module."""

    def __init__(self, handle, log):
        self.handle = handle
        self.log = log


class Driver:
    """The driver, with the first device's primary context current: the one that PyTorch uses too."""

    def __init__(self, path="libcuda.so.1"):
        self.library = ctypes.CDLL(str(path))
        self._call("cuInit", c_uint(0))
        device = c_int()
        self._call("cuDeviceGet", byref(device), c_int(0))
        self.device = device
        context = c_void_p()
        self._call("cuDevicePrimaryCtxRetain", byref(context), device)
        self._call("cuCtxSetCurrent", context)
        self._functions = {}

    def _call(self, name, *arguments):
        code = getattr(self.library, name)(*arguments)
        if code != 0:
            text = c_char_p()
            known = self.library.cuGetErrorName(c_int(code), byref(text)) == 0 and text.value
            raise DriverError(f"{name}: {text.value.decode() if known else code}")

    def name(self):
        """What the device calls itself."""
        text = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", text, c_int(256), self.device)
        return text.value.decode()

    def attribute(self, attribute):
        """A number about the device."""
        value = c_int()
        self._call("cuDeviceGetAttribute", byref(value), c_int(attribute), self.device)
        return value.value

    def version(self):
        """CUDA version that the driver supports, times 1000."""
        value = c_int()
        self._call("cuDriverGetVersion", byref(value))
        return value.value

    def function(self, path, entry, dynamic_shared):
        """The kernel `entry` of the PTX file `path`, compiled once."""
        key = (str(path), entry)
        if key not in self._functions:
            self._functions[key] = self._load(path, entry)
        function = self._functions[key]
        if dynamic_shared > DEFAULT_SHARED:
            self._call("cuFuncSetAttribute", function.handle, c_int(MAX_DYNAMIC_SHARED), c_int(dynamic_shared))
        return function

    def _load(self, path, entry):
        with open(path, "rb") as file:
            text = file.read() + b"\0"
        info, error = (ctypes.create_string_buffer(LOG_BYTES) for _ in range(2))
        given = [
            (INFO_LOG, ctypes.addressof(info)),
            (INFO_LOG_BYTES, LOG_BYTES),
            (ERROR_LOG, ctypes.addressof(error)),
            (ERROR_LOG_BYTES, LOG_BYTES),
            (LOG_VERBOSE, 1),
        ]
        options = (c_int * len(given))(*(option for option, _ in given))
        values = (c_void_p * len(given))(*(value for _, value in given))
        module = c_void_p()
        try:
            self._call("cuModuleLoadDataEx", byref(module), text, c_uint(len(given)), options, values)
        except DriverError as why:
            raise DriverError(f"{entry}: {why}\n{error.value.decode(errors='replace')}") from None
        handle = c_void_p()
        self._call("cuModuleGetFunction", byref(handle), module, entry.encode())
        return Function(handle, info.value.decode(errors="replace"))

    def launch(self, function, grid, block, dynamic_shared, cooperative, parameters, stream):
        """Launches with one parameter, a structure of these bytes, which the driver copies."""
        buffer = ctypes.create_string_buffer(parameters, len(parameters))
        pointers = (c_void_p * 1)(ctypes.addressof(buffer))
        attribute = _Attribute(COOPERATIVE, 0)
        attribute.value[0] = 1
        config = _Config(
            (c_uint * 3)(*grid),
            (c_uint * 3)(*block),
            dynamic_shared,
            stream,
            ctypes.pointer(attribute),
            1 if cooperative else 0,
        )
        self._call("cuLaunchKernelEx", byref(config), function.handle, pointers, None)

    def fill(self, to, value, width, columns, rows, pitch, stream):
        """Sets a rectangle of values of 1, 2 or 4 bytes."""
        kind, number = {1: ("D8", c_ubyte), 2: ("D16", c_ushort), 4: ("D32", c_uint)}[width]
        to, value, columns = c_uint64(to), number(value), c_size_t(columns)
        if rows == 1:
            self._call(f"cuMemset{kind}Async", to, value, columns, c_void_p(stream))
        else:
            name = f"cuMemsetD2{kind}Async"
            self._call(name, to, c_size_t(pitch), value, columns, c_size_t(rows), c_void_p(stream))

    def copy(self, to, source, count, stream):
        """Copies inside the device."""
        self._call("cuMemcpyDtoDAsync_v2", c_uint64(to), c_uint64(source), c_size_t(count), c_void_p(stream))

    def upload(self, to, contents):
        """Copies from the host, behind everything and before everything."""
        self.synchronize()
        self._call("cuMemcpyHtoD_v2", c_uint64(to), contents, c_size_t(len(contents)))
        # The call returns when the host's memory is read, which may be before the device's is written.
        self.synchronize()

    def download(self, source, count):
        """Copies to the host."""
        self.synchronize()
        target = ctypes.create_string_buffer(count)
        self._call("cuMemcpyDtoH_v2", target, c_uint64(source), c_size_t(count))
        return target.raw

    def allocate(self, count):
        """Address of so many bytes, which stay until the process ends."""
        address = c_uint64()
        self._call("cuMemAlloc_v2", byref(address), c_size_t(max(count, 1)))
        return address.value

    def synchronize(self):
        """Waits for everything."""
        self._call("cuCtxSynchronize")
