"""What is read off a compiled program's text, on a small one with every kind of line."""

import pytest

from fcn_jax.plan.compiled_text import Collective, CompiledText, without_fast_memory

# ruff: noqa: E501

TEXT = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8]{0:T(128)})->f32[8]{0:T(128)}}

%fused_convolution (param_0.1: bf16[1,8,8,128], param_1.1: bf16[3,3,128,128]) -> f32[1,8,8,128] {
  %param_0.1 = bf16[1,8,8,128]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %param_1.1 = bf16[3,3,128,128]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = f32[1,8,8,128]{3,2,1,0:T(8,128)} convolution(%param_0.1, %param_1.1), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, metadata={op_name="jit(step)/jvp(Net)/conv1/conv_general_dilated" stack_frame_id=3}
}

%fused_slice (param_0.2: f32[16,8,128], param_1.2: s32[]) -> f32[1,8,128] {
  %param_0.2 = f32[16,8,128]{2,1,0:T(8,128)} parameter(0)
  %param_1.2 = s32[]{:T(128)} parameter(1)
  ROOT %dynamic-slice.1 = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%param_0.2, %param_1.2), dynamic_slice_sizes={1,8,128}
}

%body (arguments: (s32[], f32[16,8,128])) -> (s32[], f32[16,8,128]) {
  %arguments = (s32[]{:T(128)}, f32[16,8,128]{2,1,0:T(8,128)}) parameter(0)
  %index = s32[]{:T(128)S(1)} get-tuple-element(%arguments), index=0
  %stack = f32[16,8,128]{2,1,0:T(8,128)} get-tuple-element(%arguments), index=1
  %row = f32[1,8,128]{2,1,0:T(8,128)S(1)} fusion(%stack, %index), kind=kLoop, calls=%fused_slice
  ROOT %again = (s32[]{:T(128)}, f32[16,8,128]{2,1,0:T(8,128)}) tuple(%index, %stack)
}

%condition (arguments.1: (s32[], f32[16,8,128])) -> pred[] {
  %bound = s32[]{:T(128)} constant(16)
  %arguments.1 = (s32[]{:T(128)}, f32[16,8,128]{2,1,0:T(8,128)}) parameter(0)
  %index.1 = s32[]{:T(128)} get-tuple-element(%arguments.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%index.1, %bound), direction=LT
}

ENTRY %main (image: bf16[1,8,8,128], kernel: bf16[3,3,128,128], scores: f32[4,5,21]) -> f32[1,8,8,128] {
  %image = bf16[1,8,8,128]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %kernel = bf16[3,3,128,128]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  %scores = f32[4,5,21]{2,1,0:T(8,128)} parameter(2)
  %a = f32[128]{0:T(128)S(1)} parameter(3)
  %b = f32[3,3,128,128]{3,2,1,0:T(8,128)S(1)} parameter(4)
  %c = f32[]{:T(128)S(1)} parameter(5)
  %all = f32[256]{0:T(128)S(1)} all-gather(%a), dimensions={0}
  %copy.1 = f32[4,5,21]{0,1,2:T(8,128)} copy(%scores), metadata={op_name="jit(step)/transpose"}
  %features = f32[1,8,8,128]{3,2,1,0:T(8,128)} fusion(%image, %kernel), kind=kOutput, calls=%fused_convolution
  %start = (s32[]{:T(128)}, f32[16,8,128]{2,1,0:T(8,128)}) custom-call(), custom_call_target="AllocateBuffer"
  %loop = (s32[]{:T(128)}, f32[16,8,128]{2,1,0:T(8,128)}) while(%start), condition=%condition, body=%body
  %sum = (f32[128]{0:T(128)}, f32[3,3,128,128]{3,2,1,0:T(8,128)S(1)}, /*index=2*/f32[]{:T(128)}) all-reduce(%a, %b, %c), replica_groups={{0,1}}, to_apply=%add
  ROOT %result = f32[1,8,8,128]{3,2,1,0:T(8,128)} add(%features, %features)
}
"""


@pytest.fixture
def text():
    return CompiledText(TEXT)


def extended(lines, computations=""):
    """The program with more lines in its entry, and with more computations."""
    return CompiledText(computations + TEXT.replace("  ROOT %result", lines + "  ROOT %result"))


def moved(text):
    return sum(text.traffic().values())


def test_traffic_is_of_what_runs_by_kind(text):
    row, cells = 8 * 128 * 4, 8 * 8 * 128
    assert text.traffic() == {
        "convolutions": cells * 2 + 9 * 128 * 128 * 2 + cells * 4,
        "matrix products": 0,
        "pooling": 0,
        # 4 planes of 5×21, padded to 8×128; and 21 planes of 5×4, which are padded as much.
        "layout copies": 4 * 8 * 128 * 4 + 21 * 8 * 128 * 4,
        # Sixteen rounds read a row each, into fast memory; and the sum at the end. No collective writes anything.
        "the rest": 16 * row + 3 * cells * 4,
    }


def test_collectives_count_their_values(text):
    """What each device gives: of what is gathered its own part."""
    assert text.collectives() == [
        Collective("all-gather", 1, 4 * 128),
        Collective("all-reduce", 1, 4 * (128 + 9 * 128 * 128 + 1)),
    ]


BEHIND = """%fused_{0} (share_{0}: f32[32], whole_{0}: f32[128], x_{0}: f32[8,128]) -> (f32[8,128], f32[32], f32[128], f32[128]) {{
  %share_{0} = f32[32]{{0:T(128)}} parameter(0)
  %whole_{0} = f32[128]{{0:T(128)}} parameter(1)
  %x_{0} = f32[8,128]{{1,0:T(8,128)}} parameter(2)
  %gathered.{0} = f32[128]{{0:T(128)}} all-gather(%share_{0}), dimensions={{0}}, frontend_attributes={{chain_id="7"}}
  %doubled.{0} = f32[8,128]{{1,0:T(8,128)}} add(%x_{0}, %x_{0})
  ROOT %both.{0} = (f32[8,128]{{1,0:T(8,128)}}, f32[32]{{0:T(128)}}, f32[128]{{0:T(128)}}, f32[128]{{0:T(128)}}) tuple(%doubled.{0}, %share_{0}, %whole_{0}, %gathered.{0})
}}

"""
CALLED = "  %more.{0} = (f32[8,128]{{1,0:T(8,128)}}, f32[32]{{0:T(128)}}, f32[128]{{0:T(128)}}, f32[128]{{0:T(128)}}) fusion(%a, %all, %part), kind=kOutput, calls=%fused_{0}\n"
PART = "  %part = f32[8,128]{1,0:T(8,128)} parameter(6)\n"


def test_what_is_gathered_behind_other_work_counts_once(text):
    """In three fusions of one chain, each of which reads and writes what is its own alone."""
    called = PART + "".join(map(CALLED.format, range(3)))
    # Where what is gathered lies in memory, and where it lies in fast memory.
    for lines in (called, called.replace("T(128)}", "T(128)S(1)}")):
        found = extended(lines, "".join(map(BEHIND.format, range(3))))
        gathered = [each for each in found.collectives() if each.kind == "all-gather"]
        assert gathered == [Collective("all-gather", 1, 4 * 128), Collective("all-gather", 1, 4 * 32, behind=True)]
        assert found.traffic()["the rest"] - text.traffic()["the rest"] == 3 * 2 * 8 * 128 * 4


WITHIN = """%summing (gradient: f32[1024], x: f32[8,128]) -> (f32[8,128], f32[1024]) {
  %gradient = f32[1024]{0:T(1024)} parameter(0)
  %x = f32[8,128]{1,0:T(8,128)} parameter(1)
  %summed = f32[1024]{0:T(1024)} all-reduce(%gradient), to_apply=%add
  %doubled = f32[8,128]{1,0:T(8,128)} add(%x, %x)
  ROOT %pair = (f32[8,128]{1,0:T(8,128)}, f32[1024]{0:T(1024)}) tuple(%doubled, %summed)
}

%sharing (gradient: f32[1024], place: s32[]) -> f32[128] {
  %gradient = f32[1024]{0:T(1024)} parameter(0)
  %place = s32[]{:T(128)} parameter(1)
  %summed = f32[1024]{0:T(1024)} all-reduce(%gradient), to_apply=%add
  ROOT %share = f32[128]{0:T(128)} dynamic-slice(%summed, %place), dynamic_slice_sizes={128}
}

%beginning (gradient: f32[1024]) -> (f32[1024], f32[4096], u32[]) {
  %gradient = f32[1024]{0:T(1024)} parameter(0)
  %gathered = f32[4096]{0:T(1024)} all-gather(%gradient), dimensions={0}, frontend_attributes={chain_id="8"}
  ROOT %begun = (f32[1024]{0:T(1024)}, f32[4096]{0:T(1024)}, u32[]{:S(2)}) custom-call(%gradient, %gathered), custom_call_target="AsyncCollectiveStart"
}

"""


@pytest.mark.parametrize(
    ("fusion", "others"),
    [
        ("(f32[8,128]{1,0:T(8,128)}, f32[1024]{0:T(1024)}) fusion(%given, %part), calls=%summing", 2 * 8 * 128 * 4),
        ("f32[128]{0:T(128)} fusion(%given, %c), calls=%sharing", 0),
        ("(f32[1024]{0:T(1024)}, f32[4096]{0:T(1024)}, u32[]{:S(2)}) fusion(%given), calls=%beginning", 0),
    ],
)
def test_of_a_fusion_with_a_collective_only_other_work_moves(text, fusion, others):
    found = extended(f"{PART}  %given = f32[1024]{{0:T(1024)}} parameter(7)\n  %fused = {fusion}\n", WITHIN)
    assert sum(each.count for each in found.collectives()) == 3
    assert moved(found) - moved(text) == others


LARGE, ROWS, STATE = "f32[128,128]{1,0:T(8,128)}", "f32[8,128]{1,0:T(8,128)}", "u32[]{:S(2)}"
FAST = LARGE.replace("}", "S(1)}")
WHOLE, CUT = 128 * 128 * 4, 8 * 128 * 4
WRAPPED = f"""%slicing (whole: f32[128,128]) -> f32[8,128] {{
  %whole = {LARGE} parameter(0)
  ROOT %cut = {ROWS} slice(%whole), slice={{[0:8], [0:128]}}
}}

%laying (whole: f32[128,128]) -> f32[128,128] {{
  %whole = {LARGE} parameter(0)
  ROOT %laid = f32[128,128]{{0,1:T(8,128)}} copy(%whole)
}}

%scattering (whole: f32[128,128]) -> f32[8,128] {{
  %whole = {LARGE} parameter(0)
  ROOT %scattered = {ROWS} reduce-scatter(%whole), dimensions={{0}}, to_apply=%add
}}

"""


@pytest.mark.parametrize(
    ("arrays", "opcode", "attributes", "bytes_moved"),
    [
        (f"(({LARGE}), {ROWS}, {STATE})", "async", "calls=%slicing", 2 * CUT),
        (f"(({LARGE}), {ROWS}, {STATE})", "slice", "slice={[0:8], [0:128]}", 2 * CUT),
        (f"(({LARGE}), {LARGE}, u32[])", "async", "calls=%laying", 2 * WHOLE),
        (f"(({LARGE}), {LARGE})", "negate", "", 2 * WHOLE),
        (f"({FAST}, {LARGE}, u32[])", "copy", "", WHOLE),
        (f"({ROWS}, {LARGE})", "all-gather", "dimensions={0}", 0),
        (LARGE, "all-reduce", "to_apply=%add", 0),
        (f"({LARGE}, {LARGE}, u32[], u32[])", "collective-permute", "source_target_pairs={{0,1}}", 0),
        (f"(({LARGE}), {ROWS})", "reduce-scatter", "dimensions={0}, to_apply=%add", 0),
        (f"(({LARGE}), {ROWS})", "async", "calls=%scattering", 0),
    ],
)
def test_what_is_asynchronous_moves_once(text, arrays, opcode, attributes, bytes_moved):
    """Its start has operands and results side by side, and what follows has them again."""
    lines = f"""  %large = {LARGE} parameter(6)
  %begun = {arrays} {opcode}-start(%large), {attributes}
  %further = {arrays} {opcode}-update(%begun)
  %ended = {LARGE} {opcode}-done(%further)
"""
    assert moved(extended(lines, WRAPPED)) - moved(text) == bytes_moved


def test_what_stays_in_fast_memory_is_read_and_written_all_the_same(text):
    """The row of each turn, and the scalar that says which."""
    everything = CompiledText(without_fast_memory(TEXT)).traffic()
    assert sum(everything.values()) - sum(text.traffic().values()) == 16 * (8 * 128 * 4 + 4)


def test_copies_and_padding_name_their_origin(text):
    (size, what, origin), *others = text.copies()
    assert (size, what, origin, others) == (25 * 8 * 128 * 4, "f32[4,5,21]", "jit(step)/transpose", [])
    wasted = {str(array): size for size, array, _ in text.padding()}
    assert wasted["f32[4,5,21]"] == 4 * (8 * 128 - 5 * 21) * 4


def test_no_host_is_waited_for_until_there_is_one(text):
    assert text.host_transfers() == []
    callback = '  %called = f32[8]{0:T(128)} custom-call(%image), custom_call_target="xla_python_cpu_callback"\n'
    outfeed = "  %out = token[] outfeed(%image, %token), outfeed_shape=bf16[1,8,8,128]{3,2,1,0}\n"
    for line in (callback, outfeed):
        assert len(extended(line).host_transfers()) == 1
