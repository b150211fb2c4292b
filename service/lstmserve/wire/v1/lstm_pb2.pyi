import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class IfExists(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IF_EXISTS_UNSPECIFIED: _ClassVar[IfExists]
    IF_EXISTS_RESUME: _ClassVar[IfExists]
    IF_EXISTS_RESTART: _ClassVar[IfExists]
IF_EXISTS_UNSPECIFIED: IfExists
IF_EXISTS_RESUME: IfExists
IF_EXISTS_RESTART: IfExists

class StepRequest(_message.Message):
    __slots__ = ("session_id", "step", "incarnation", "length", "x", "tokens", "last_only", "timeout_ms", "tag")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    X_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LAST_ONLY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    step: int
    incarnation: int
    length: int
    x: bytes
    tokens: _containers.RepeatedScalarFieldContainer[int]
    last_only: bool
    timeout_ms: int
    tag: int
    def __init__(self, session_id: _Optional[str] = ..., step: _Optional[int] = ..., incarnation: _Optional[int] = ..., length: _Optional[int] = ..., x: _Optional[bytes] = ..., tokens: _Optional[_Iterable[int]] = ..., last_only: _Optional[bool] = ..., timeout_ms: _Optional[int] = ..., tag: _Optional[int] = ...) -> None: ...

class StepResponse(_message.Message):
    __slots__ = ("step", "replayed", "durable_step", "length", "y", "queue_ns", "compute_ns", "session_id", "tag", "error", "y_ints", "missing_rows")
    STEP_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    DURABLE_STEP_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    QUEUE_NS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_NS_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    Y_INTS_FIELD_NUMBER: _ClassVar[int]
    MISSING_ROWS_FIELD_NUMBER: _ClassVar[int]
    step: int
    replayed: bool
    durable_step: int
    length: int
    y: bytes
    queue_ns: int
    compute_ns: int
    session_id: str
    tag: int
    error: _status_pb2.Status
    y_ints: _containers.RepeatedScalarFieldContainer[int]
    missing_rows: int
    def __init__(self, step: _Optional[int] = ..., replayed: _Optional[bool] = ..., durable_step: _Optional[int] = ..., length: _Optional[int] = ..., y: _Optional[bytes] = ..., queue_ns: _Optional[int] = ..., compute_ns: _Optional[int] = ..., session_id: _Optional[str] = ..., tag: _Optional[int] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., y_ints: _Optional[_Iterable[int]] = ..., missing_rows: _Optional[int] = ...) -> None: ...

class StepManyRequest(_message.Message):
    __slots__ = ("session_ids", "steps", "incarnations", "lengths", "x", "tokens", "last_only", "timeout_ms", "tag")
    SESSION_IDS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    INCARNATIONS_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    X_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LAST_ONLY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    session_ids: _containers.RepeatedScalarFieldContainer[str]
    steps: _containers.RepeatedScalarFieldContainer[int]
    incarnations: _containers.RepeatedScalarFieldContainer[int]
    lengths: _containers.RepeatedScalarFieldContainer[int]
    x: bytes
    tokens: _containers.RepeatedScalarFieldContainer[int]
    last_only: bool
    timeout_ms: int
    tag: int
    def __init__(self, session_ids: _Optional[_Iterable[str]] = ..., steps: _Optional[_Iterable[int]] = ..., incarnations: _Optional[_Iterable[int]] = ..., lengths: _Optional[_Iterable[int]] = ..., x: _Optional[bytes] = ..., tokens: _Optional[_Iterable[int]] = ..., last_only: _Optional[bool] = ..., timeout_ms: _Optional[int] = ..., tag: _Optional[int] = ...) -> None: ...

class StepManyResponse(_message.Message):
    __slots__ = ("steps", "replayed", "durable_steps", "lengths", "y", "queue_ns", "compute_ns", "tag", "errors", "error", "y_ints", "missing_rows")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    DURABLE_STEPS_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    QUEUE_NS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_NS_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    Y_INTS_FIELD_NUMBER: _ClassVar[int]
    MISSING_ROWS_FIELD_NUMBER: _ClassVar[int]
    steps: _containers.RepeatedScalarFieldContainer[int]
    replayed: _containers.RepeatedScalarFieldContainer[int]
    durable_steps: _containers.RepeatedScalarFieldContainer[int]
    lengths: _containers.RepeatedScalarFieldContainer[int]
    y: bytes
    queue_ns: int
    compute_ns: int
    tag: int
    errors: _containers.RepeatedCompositeFieldContainer[SessionError]
    error: _status_pb2.Status
    y_ints: _containers.RepeatedScalarFieldContainer[int]
    missing_rows: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, steps: _Optional[_Iterable[int]] = ..., replayed: _Optional[_Iterable[int]] = ..., durable_steps: _Optional[_Iterable[int]] = ..., lengths: _Optional[_Iterable[int]] = ..., y: _Optional[bytes] = ..., queue_ns: _Optional[int] = ..., compute_ns: _Optional[int] = ..., tag: _Optional[int] = ..., errors: _Optional[_Iterable[_Union[SessionError, _Mapping]]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., y_ints: _Optional[_Iterable[int]] = ..., missing_rows: _Optional[_Iterable[int]] = ...) -> None: ...

class SessionError(_message.Message):
    __slots__ = ("index", "status")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    index: int
    status: _status_pb2.Status
    def __init__(self, index: _Optional[int] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class PredictRequest(_message.Message):
    __slots__ = ("was_3", "was_8", "was_9", "model", "version", "lengths", "x", "tokens", "last_only", "with_state", "initial")
    WAS_3_FIELD_NUMBER: _ClassVar[int]
    WAS_8_FIELD_NUMBER: _ClassVar[int]
    WAS_9_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    X_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LAST_ONLY_FIELD_NUMBER: _ClassVar[int]
    WITH_STATE_FIELD_NUMBER: _ClassVar[int]
    INITIAL_FIELD_NUMBER: _ClassVar[int]
    was_3: _containers.RepeatedScalarFieldContainer[int]
    was_8: _containers.RepeatedScalarFieldContainer[int]
    was_9: _containers.RepeatedScalarFieldContainer[int]
    model: str
    version: int
    lengths: _containers.RepeatedScalarFieldContainer[int]
    x: bytes
    tokens: _containers.RepeatedScalarFieldContainer[int]
    last_only: bool
    with_state: bool
    initial: _containers.RepeatedCompositeFieldContainer[Tensor]
    def __init__(self, was_3: _Optional[_Iterable[int]] = ..., was_8: _Optional[_Iterable[int]] = ..., was_9: _Optional[_Iterable[int]] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., lengths: _Optional[_Iterable[int]] = ..., x: _Optional[bytes] = ..., tokens: _Optional[_Iterable[int]] = ..., last_only: _Optional[bool] = ..., with_state: _Optional[bool] = ..., initial: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ...) -> None: ...

class PredictResponse(_message.Message):
    __slots__ = ("was_1", "was_3", "was_8", "was_9", "version", "lengths", "y", "queue_ns", "compute_ns", "y_ints", "final")
    WAS_1_FIELD_NUMBER: _ClassVar[int]
    WAS_3_FIELD_NUMBER: _ClassVar[int]
    WAS_8_FIELD_NUMBER: _ClassVar[int]
    WAS_9_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    QUEUE_NS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_NS_FIELD_NUMBER: _ClassVar[int]
    Y_INTS_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    was_1: _containers.RepeatedScalarFieldContainer[int]
    was_3: _containers.RepeatedScalarFieldContainer[int]
    was_8: _containers.RepeatedScalarFieldContainer[int]
    was_9: _containers.RepeatedScalarFieldContainer[int]
    version: int
    lengths: _containers.RepeatedScalarFieldContainer[int]
    y: bytes
    queue_ns: int
    compute_ns: int
    y_ints: _containers.RepeatedScalarFieldContainer[int]
    final: _containers.RepeatedCompositeFieldContainer[Tensor]
    def __init__(self, was_1: _Optional[_Iterable[int]] = ..., was_3: _Optional[_Iterable[int]] = ..., was_8: _Optional[_Iterable[int]] = ..., was_9: _Optional[_Iterable[int]] = ..., version: _Optional[int] = ..., lengths: _Optional[_Iterable[int]] = ..., y: _Optional[bytes] = ..., queue_ns: _Optional[int] = ..., compute_ns: _Optional[int] = ..., y_ints: _Optional[_Iterable[int]] = ..., final: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ...) -> None: ...

class OpenSessionRequest(_message.Message):
    __slots__ = ("model", "version", "session_id", "ttl", "if_exists", "state", "fork_of", "request_id")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    IF_EXISTS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FORK_OF_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    session_id: str
    ttl: _duration_pb2.Duration
    if_exists: IfExists
    state: State
    fork_of: str
    request_id: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., session_id: _Optional[str] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., if_exists: _Optional[_Union[IfExists, str]] = ..., state: _Optional[_Union[State, _Mapping]] = ..., fork_of: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class OpenSessionResponse(_message.Message):
    __slots__ = ("session", "created")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    session: Session
    created: bool
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., created: _Optional[bool] = ...) -> None: ...

class Session(_message.Message):
    __slots__ = ("id", "model", "version", "incarnation", "step", "durable_step", "pending_steps", "ttl", "open_time", "expire_time")
    ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    DURABLE_STEP_FIELD_NUMBER: _ClassVar[int]
    PENDING_STEPS_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    OPEN_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    id: str
    model: str
    version: int
    incarnation: int
    step: int
    durable_step: int
    pending_steps: int
    ttl: _duration_pb2.Duration
    open_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, id: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., incarnation: _Optional[int] = ..., step: _Optional[int] = ..., durable_step: _Optional[int] = ..., pending_steps: _Optional[int] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., open_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class State(_message.Message):
    __slots__ = ("was_1", "was_2", "step", "fingerprint", "crc32c", "tensors")
    WAS_1_FIELD_NUMBER: _ClassVar[int]
    WAS_2_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    was_1: _containers.RepeatedScalarFieldContainer[int]
    was_2: _containers.RepeatedScalarFieldContainer[int]
    step: int
    fingerprint: str
    crc32c: int
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    def __init__(self, was_1: _Optional[_Iterable[int]] = ..., was_2: _Optional[_Iterable[int]] = ..., step: _Optional[int] = ..., fingerprint: _Optional[str] = ..., crc32c: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("name", "shape", "floats", "ints")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    FLOATS_FIELD_NUMBER: _ClassVar[int]
    INTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    floats: bytes
    ints: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., floats: _Optional[bytes] = ..., ints: _Optional[_Iterable[int]] = ...) -> None: ...

class GetSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class GetSessionResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: Session
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ...) -> None: ...

class ListSessionsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "model")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    model: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class ListSessionsResponse(_message.Message):
    __slots__ = ("sessions", "next_page_token")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[Session]
    next_page_token: str
    def __init__(self, sessions: _Optional[_Iterable[_Union[Session, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CloseSessionRequest(_message.Message):
    __slots__ = ("session_id", "incarnation")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    incarnation: int
    def __init__(self, session_id: _Optional[str] = ..., incarnation: _Optional[int] = ...) -> None: ...

class CloseSessionResponse(_message.Message):
    __slots__ = ("step",)
    STEP_FIELD_NUMBER: _ClassVar[int]
    step: int
    def __init__(self, step: _Optional[int] = ...) -> None: ...

class GetStateRequest(_message.Message):
    __slots__ = ("session_id", "incarnation")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    incarnation: int
    def __init__(self, session_id: _Optional[str] = ..., incarnation: _Optional[int] = ...) -> None: ...

class GetStateResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: State
    def __init__(self, state: _Optional[_Union[State, _Mapping]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "version", "fingerprint", "device", "length_max", "message_bytes_max", "spec")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    LENGTH_MAX_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    fingerprint: str
    device: str
    length_max: int
    message_bytes_max: int
    spec: ModelSpec
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., fingerprint: _Optional[str] = ..., device: _Optional[str] = ..., length_max: _Optional[int] = ..., message_bytes_max: _Optional[int] = ..., spec: _Optional[_Union[ModelSpec, _Mapping]] = ...) -> None: ...

class ModelSpec(_message.Message):
    __slots__ = ("kind", "inputs", "outputs", "states", "window", "window_fill", "is_streaming", "is_exact", "lstm", "difference")
    KIND_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FILL_FIELD_NUMBER: _ClassVar[int]
    IS_STREAMING_FIELD_NUMBER: _ClassVar[int]
    IS_EXACT_FIELD_NUMBER: _ClassVar[int]
    LSTM_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    inputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    outputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    states: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    window: int
    window_fill: str
    is_streaming: bool
    is_exact: bool
    lstm: LstmSpec
    difference: float
    def __init__(self, kind: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., states: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., window: _Optional[int] = ..., window_fill: _Optional[str] = ..., is_streaming: _Optional[bool] = ..., is_exact: _Optional[bool] = ..., lstm: _Optional[_Union[LstmSpec, _Mapping]] = ..., difference: _Optional[float] = ...) -> None: ...

class TensorSpec(_message.Message):
    __slots__ = ("name", "shape", "dtype")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    dtype: str
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., dtype: _Optional[str] = ...) -> None: ...

class LstmSpec(_message.Message):
    __slots__ = ("input_size", "hidden_size", "num_layers", "proj_size", "bidirectional", "output_size", "num_embeddings")
    INPUT_SIZE_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    PROJ_SIZE_FIELD_NUMBER: _ClassVar[int]
    BIDIRECTIONAL_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    input_size: int
    hidden_size: int
    num_layers: int
    proj_size: int
    bidirectional: bool
    output_size: int
    num_embeddings: int
    def __init__(self, input_size: _Optional[int] = ..., hidden_size: _Optional[int] = ..., num_layers: _Optional[int] = ..., proj_size: _Optional[int] = ..., bidirectional: _Optional[bool] = ..., output_size: _Optional[int] = ..., num_embeddings: _Optional[int] = ...) -> None: ...
