# SPDX-License-Identifier: Apache-2.0
"""One vector of a Gaussian source to bytes and back: the loop, its bits, prefixes, damage."""

import dataclasses

import pytest
import torch

from compressai_sga.errors import BitstreamError
from compressai_sga.models.diffc import codec
from compressai_sga.models.diffc import process as chain
from compressai_sga.models.diffc.channel import Channel, announced_millibits
from compressai_sga.models.diffc.codec import Coder, decode_image, encode_image
from compressai_sga.models.diffc.costs import Ladder
from tests.models.diffc.diffc_parts import GaussianSource

SOURCE = GaussianSource()
CODER = SOURCE.coder(channel=Channel("trellis", 8))
GOLDEN = (
    "000b1909771769a913c44b000199797c42147edaecca879d7488ad90489b49afe02a828b9dbd"
    "11ada14606379d0a8a789b8ea2bd1d44a57a6c315a8af7a62a17afb7d1aa5f61"
)


def encode(x, coder=CODER, **target):
    reports = []
    code = encode_image(x, coder, progress=reports.append, **target)
    return code, reports


@pytest.mark.parametrize("channel", [Channel("trellis", 6), Channel("orc", 6), Channel("pfr", 8)], ids=str)
def test_the_decoder_gets_the_encoders_z(channel):
    x, coder = SOURCE.draw(1, 3)[0], dataclasses.replace(CODER, channel=channel)
    code, reports = encode(x, coder, target_bits=250)
    got = decode_image(code.data, SOURCE.shape, CODER)  # of the channel the stream tells
    assert torch.equal(got.z, code.z) and got.log_snr == code.log_snr
    assert got.steps == got.of_steps == code.steps
    assert torch.equal(reports[code.steps - 1].z, code.z)
    again = encode_image(x, coder, target_bits=250)
    assert again.data == code.data


def test_golden_bytes():
    """Of a table of costs that is written down and a source in closed form: no network and no estimate, whose
    last bits are those of a processor and of a version of torch."""
    ladder = Ladder(-8.0, 6.0, tuple(int(2**30 * 0.95**level) for level in range(65)))
    coder = Coder(SOURCE.denoiser, ladder, channel=Channel("trellis", 8))
    x = torch.arange(192, dtype=torch.float64).remainder(7).sub(3).reshape(SOURCE.shape) / 4
    assert encode_image(x, coder, target_bits=600).data.hex() == GOLDEN


def test_seed_and_limit_travel_in_the_stream():
    x = SOURCE.draw(1, 3)[0]
    plain = encode_image(x, CODER, target_bits=250)
    other = encode_image(x, dataclasses.replace(CODER, seed=2**64 - 3, steps_limit=7), target_bits=250)
    got = decode_image(other.data, SOURCE.shape, CODER)
    assert got.seed == 2**64 - 3 and torch.equal(got.z, other.z)
    assert other.steps < 8 and not torch.equal(other.z, plain.z)


def test_every_prefix_decodes_to_the_last_step_that_it_determines():
    code, reports = encode(SOURCE.draw(1, 4)[0], target_bits=300)
    steps = []
    for length in range(len(code.data) + 1):
        try:
            got = decode_image(code.data[:length], SOURCE.shape, CODER, whole=False)
        except BitstreamError as error:
            assert "none of its" in str(error) or "header" in str(error)
            steps.append(0)
        else:
            assert torch.equal(got.z, reports[got.steps - 1].z)
            steps.append(got.steps)
            # No byte is waited for: the step's bits are within two bytes of the prefix's end.
            if got.steps < code.steps:
                assert 8 * length < reports[got.steps].bits + 16
    assert steps == sorted(steps) and steps[0] == 0 and steps[-1] == code.steps > 5
    assert set(steps) == set(range(code.steps + 1)) or code.steps > len(set(steps)) > code.steps // 2


def test_cut_bytes_are_refused_unless_asked_for():
    code = encode_image(SOURCE.draw(1, 4)[0], CODER, target_bits=300)
    for wrong in (code.data[:-1], code.data[:20], code.data + b"\0"):
        with pytest.raises(BitstreamError, match="max_bytes"):
            decode_image(wrong, SOURCE.shape, CODER)
    assert decode_image(code.data + b"\0", SOURCE.shape, CODER, whole=False).steps == code.steps
    for nothing in (b"", b"\0", code.data[:3]):
        with pytest.raises(BitstreamError, match="none of its|header"):
            decode_image(nothing, SOURCE.shape, CODER, whole=False)


def test_damage_is_found():
    code = encode_image(SOURCE.draw(1, 5)[0], CODER, target_bits=300)
    wrong = 0
    for place in range(len(code.data)):
        for bit in (0, 3, 7):
            data = bytearray(code.data)
            data[place] ^= 1 << bit
            try:
                got = decode_image(bytes(data), SOURCE.shape, CODER)
            except BitstreamError:
                continue
            wrong += not torch.equal(got.z, code.z)
    # The last step has 8 bits of check, any other more: of 111 changes 0.4 go unnoticed in the mean.
    assert wrong <= 3


def test_hostile_bytes_end_soon():
    drawing = torch.Generator().manual_seed(0)
    for length in (0, 1, 2, 5, 30, 1000):
        for _ in range(4):
            data = bytes(torch.randint(0, 256, (length,), generator=drawing).tolist())
            for whole in (True, False):
                try:
                    decode_image(data, SOURCE.shape, CODER, whole=whole)
                except BitstreamError:
                    pass


def test_other_numbers_are_found_and_explained():
    code = encode_image(SOURCE.draw(1, 6)[0], CODER, target_bits=300)

    def other(z, log_snr):
        return SOURCE.denoiser(z, log_snr) + 2.0**-10 * (z > 2.5)

    changed = dataclasses.replace(CODER, denoiser=other)
    with pytest.raises(BitstreamError, match="check after step.*damaged, or the network"):
        decode_image(code.data, SOURCE.shape, changed)
    with pytest.raises(BitstreamError, match="their tags differ"):
        decode_image(code.data, SOURCE.shape, dataclasses.replace(changed, machine_tag=5))
    # Another machine whose numbers agree is no obstacle, another model is.
    assert (
        decode_image(code.data, SOURCE.shape, dataclasses.replace(CODER, machine_tag=5)).steps == code.steps
    )
    with pytest.raises(BitstreamError, match="another model"):
        decode_image(code.data, SOURCE.shape, dataclasses.replace(CODER, model_tag=5))


def test_the_last_bit_of_a_coefficient_does_not_matter(monkeypatch):
    code = encode_image(SOURCE.draw(1, 7)[0], CODER, target_bits=300)
    monkeypatch.setattr(codec, "advance", lambda *step: chain.advance(*step) * (1 + 1e-15))
    got = decode_image(code.data, SOURCE.shape, CODER)
    assert torch.equal(got.z, code.z)


def test_targets():
    x = SOURCE.draw(1, 8)[0]
    whole, reports = encode(x)
    assert whole.steps == reports[-1].steps == len(reports)
    for steps in (1, 4):
        assert encode_image(x, CODER, steps=steps).steps == steps
    # Nearest: no other step ends nearer to the target.
    bits = [report.bits for report in reports]
    for target in (60.0, 150.0, 333.0):
        code = encode_image(x, CODER, target_bits=target)
        nearest = min(range(len(bits)), key=lambda i: abs(bits[i] - target)) + 1
        assert code.steps == nearest
        assert 8 * len(code.data) == pytest.approx(bits[nearest - 1], abs=12)
    assert encode_image(x, CODER, target_bits=1.0).steps == 1


def test_the_bits_follow_the_divergence_and_the_error_falls_with_every_prefix():
    bits = kls = 0.0
    errors = torch.zeros(9, dtype=torch.float64)
    xs = SOURCE.draw(9, 9)
    for x in xs:
        code, reports = encode(x, target_bits=400)
        bits += 8 * len(code.data)
        kls += sum(report.kl_bits for report in reports[: code.steps])
        for i in range(9):
            z, log_snr = reports[i].z[None], reports[i].log_snr
            errors[i] += (SOURCE.gaussian.flow(z, log_snr)[0] - x).square().mean()
    assert bool((errors.diff() < 0).all())
    # Header, rates, checks and the end are some 60 of 600 bits here; the trellis' are 0.85 of the divergence.
    assert 0.9 < bits / kls < 1.08


def test_hard_images_take_more_bits_and_plain_ones_fewer():
    x, bits = SOURCE.draw(1, 10)[0], []
    for scale in (0.2, 1, 4):
        code, reports = encode(scale * x, steps=60)
        assert torch.equal(decode_image(code.data, SOURCE.shape, CODER).z, code.z)
        bits.append(next(report.bits for report in reports if report.log_snr > 0))
    assert bits == sorted(bits) and bits[0] < bits[1] - 10 and bits[1] < bits[2] - 10


def test_announced_divergences_are_powers_of_the_root_of_two():
    for halves in (-15, -4, -1, 0, 1, 2, 3, 17):
        assert announced_millibits(10**6, halves) == pytest.approx(1e6 * 2 ** (halves / 2), rel=1e-4)


@pytest.mark.parametrize("channel", [Channel("trellis", 12), Channel("orc", 12)], ids=str)
def test_divergences_beyond_reason_are_cut(channel):
    # What damaged bytes may announce, and a picture that is nothing like the model's.
    shift = torch.tensor([1e6, -1e6, 3.0], dtype=torch.float64)
    for kl_millibits in (10**4, 10**12):
        models = channel.models(3, kl_millibits)
        numbers = channel.send(shift, kl_millibits, seed=0, step=1)
        assert [len(part) for part in numbers] == [count for count, _ in models]
        assert all(int(part.max()) < model.support for part, (_, model) in zip(numbers, models))
        sample = channel.receive(numbers, 3, kl_millibits, seed=0, step=1)
        assert sample[0] > 0.5 and sample[1] < -0.5


def test_channels_have_errors():
    with pytest.raises(ValueError, match="trellis, orc, pfr"):
        Channel("mrc")
    with pytest.raises(ValueError, match="size is 7"):
        Channel("trellis", 7)
