"""The count of what a program compiled for a GPU reads and writes."""

import pytest

from benchmarks import gpu, gpu_cost, hlo

PROGRAM = """HloModule jit_step, entry_computation_layout={(f32[4,8]{1,0})->f32[4,4]{1,0}}

%fused (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  ROOT %m = f32[4,8]{1,0} multiply(%p, %p)
}

%body (s: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %s = (s32[], f32[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %v = f32[4,8]{1,0} get-tuple-element(%s), index=1
  %f = f32[4,8]{1,0} fusion(%v), kind=kLoop, calls=%fused
  ROOT %t = (s32[], f32[4,8]{1,0}) tuple(%i, %f)
}

%cond (s: (s32[], f32[4,8])) -> pred[] {
  %s = (s32[], f32[4,8]{1,0}) parameter(0)
  ROOT %always = pred[] constant(true)
}

ENTRY %main (x: f32[4,8]) -> f32[4,4] {
  %x = f32[4,8]{1,0} parameter(0), metadata={op_name="x (an input)"}
  %zero = s32[] constant(0)
  %start = (s32[], f32[4,8]{1,0}) tuple(%zero, %x)
  %loop = (s32[], f32[4,8]{1,0}) while(%start), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %last = f32[4,8]{1,0} get-tuple-element(%loop), index=1
  %half = bf16[4,8]{1,0} fusion(%last), kind=kLoop, calls=%fused
  %gemm = (f32[4,4]{1,0}, s8[4194304]{0}) custom-call(%half, %half), custom_call_target="__cublas$lt$matmul"
  ROOT %out = f32[4,4]{1,0} get-tuple-element(%gemm), index=0
}
"""


def test_operands_and_results_of_all_instructions_count():
    # Three rounds of the loop, a fusion to bfloat16, and a product without its scratch space.
    assert hlo.traffic(PROGRAM) == hlo.Traffic(3 * 256 + (128 + 64) + (2 * 64 + 64), gemms=1, kernels=5)


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="give the text of a compiled program"):
        hlo.traffic("HloModule empty\n")


def test_cards_and_the_compiler_are_checked_first(capsys):
    with pytest.raises(SystemExit):
        gpu_cost.main(["--cards=A100,V100"])
    assert "V100 is not known; choose of T4, A100, L4, H100, H200" in capsys.readouterr().err
    if gpu.find_cuda() is None:
        assert gpu_cost.main([]) == 1
        assert "install jax-cuda12-plugin" in capsys.readouterr().err
