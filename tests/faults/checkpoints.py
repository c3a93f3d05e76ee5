"""Faults in checkpoint files: how they are written, checked, read, listed, exported and shown."""

from tests.faults import mutant

DURABLE, WRITING, READING = (f"checkpoint/{name}.py" for name in ("durable", "writing", "reading"))
CLAIMS, LAYOUT, EXPORTING = (f"checkpoint/{name}.py" for name in ("claims", "layout", "exporting"))
SAVING, DAMAGE, HOSTILE, ROUND_TRIP, MISFITS, EXPORT, COMMAND = (
    f"checkpoint/test_{name}.py::"
    for name in ("saving", "damage", "hostile", "round_trip", "misfits", "export", "command")
)
WORDS = HOSTILE + "test_sec_1_refusals_are_told_in_words"
WATCHED = HOSTILE + "test_sec_1_five_hundred_hostile_files_run_nothing_and_take_no_memory"
ANY_CALL = SAVING + "test_ckpt_2_an_error_of_any_system_call_is_one_error_and_loses_nothing"
IN_ORDER = SAVING + "test_ckpt_1_a_file_is_synced_and_read_back_before_it_has_its_name_and_its_directory_after"
TOO_LARGE = SAVING + "test_ckpt_2_a_file_that_may_not_grow_is_one_error_wherever_it_ends"

FAULTS = (
    mutant(
        "CKPT-1: written in place",
        DURABLE,
        'temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")',
        "temporary = path",
        SAVING + "test_ckpt_1_forty_kills_while_saving_leave_the_old_file_or_the_new",
        TOO_LARGE,
    ),
    mutant(
        "CKPT-2: an error of a write is left to torch, which rewords it",
        DURABLE,
        "        if self.error is not None:\n            raise self.error\n",
        "",
        ANY_CALL,
    ),
    mutant(
        "CKPT-2: the temporary stays",
        DURABLE,
        "            temporary.unlink()\n",
        "            temporary.exists()\n",
        TOO_LARGE,
    ),
    mutant(
        "CKPT-1: the file is not synced",
        DURABLE,
        "            os.fsync(file.fileno())\n",
        "",
        IN_ORDER,
    ),
    mutant(
        "CKPT-1: the directory is not synced",
        DURABLE,
        "        sync(path.parent)\n",
        "",
        IN_ORDER,
    ),
    mutant(
        "CKPT-2: an error of reading back is called no zip",
        CLAIMS,
        "        if reading.error is not None:\n            raise reading.error from None\n",
        "",
        ANY_CALL,
    ),
    mutant(
        "CKPT-3: a file is renamed without being read back",
        DURABLE,
        "            if check:\n",
        "            if check and False:\n",
        SAVING + "test_ckpt_3_what_is_written_wrong_is_found_before_the_old_file_goes",
    ),
    mutant(
        "CKPT-3: only the seal of what was written is checked",
        WRITING,
        "with replacing(target, check_file) as file:",
        'with replacing(target, __import__("functrain").checkpoint.durable.check_seal) as file:',
        SAVING + "test_ckpt_3_what_would_not_be_read_is_not_written",
    ),
    mutant(
        "CKPT-3: a dtype is not among those that are read",
        CLAIMS,
        "torch.float8_e8m0fnu, ",
        "",
        ROUND_TRIP + "test_ckpt_3_every_dtype_and_thousands_of_leaves_are_read",
    ),
    mutant(
        "CKPT-4: the seal is not compared",
        DURABLE,
        "if file.read() != _COMMENT + digest.hexdigest().encode():",
        "if not file.read().startswith(_COMMENT):",
        DAMAGE + "test_ckpt_4_one_changed_bit_anywhere_is_an_error",
    ),
    mutant(
        "CKPT-4: the seal is of the beginning alone",
        DURABLE,
        "while body and (chunk := file.read(min(1 << 20, body))):",
        "while body and (chunk := file.read(min(1 << 20, body))) and body > 1 << 12:",
        DAMAGE + "test_ckpt_4_one_changed_bit_anywhere_is_an_error",
    ),
    mutant(
        "CKPT-5: the newest by name, not by number",
        "checkpoint/listing.py",
        "(int(match[1]), path) for path in found",
        "(match[1], path) for path in found",
        DAMAGE + "test_ckpt_5_latest_is_the_newest_by_number_that_verifies",
    ),
    mutant(
        "CKPT-5: the newest, whole or not",
        "checkpoint/listing.py",
        "            verify(path)\n",
        "            path.stat()\n",
        DAMAGE + "test_ckpt_5_latest_is_the_newest_by_number_that_verifies",
        "trainer/test_directory.py::test_ckpt_5_auto_takes_the_newest_that_verifies_and_names_each_that_it_skips",
    ),
    mutant(
        "CKPT-9: tensors go where the file says they were",
        READING,
        'torch.load(file, map_location="cpu", weights_only=True)',
        "torch.load(file, weights_only=True)",
        ROUND_TRIP + "test_ckpt_9_a_file_says_where_its_tensors_were_and_is_read_on_the_cpu",
    ),
    mutant(
        "CKPT-10: a view is saved with its whole storage",
        WRITING,
        "return plain if plain.untyped_storage().nbytes() == plain.nbytes else plain.clone()",
        "return plain",
        ROUND_TRIP + "test_ckpt_10_a_view_is_saved_as_its_own_elements",
    ),
    mutant(
        "CKPT-10: tied leaves are written twice",
        WRITING,
        "        if one not in written:\n",
        "        if one:\n",
        ROUND_TRIP + "test_ckpt_10_tied_leaves_are_written_once_and_are_tied_where_the_template_is",
    ),
    mutant(
        "CKPT-10: tied leaves come back apart",
        "checkpoint/fitting.py",
        "        if one not in made:\n",
        "        if made is not None:\n",
        ROUND_TRIP + "test_ckpt_10_tied_leaves_are_written_once_and_are_tied_where_the_template_is",
    ),
    mutant(
        "SEC-1: torch may run what a file names",
        READING,
        'map_location="cpu", weights_only=True',
        'map_location="cpu", weights_only=False',
        HOSTILE + "test_sec_1_torchs_reader_alone_would_run_nothing_either",
    ),
    mutant(
        "SEC-1: claims are not checked",
        CLAIMS,
        'check_claims(open_archive(cast("BinaryIO", reading)))',
        'open_archive(cast("BinaryIO", reading))',
        HOSTILE + "test_sec_1_a_list_of_what_torch_may_call_does_not_bind_checkpoints",
    ),
    mutant(
        "SEC-1: any name may stand in a file",
        CLAIMS,
        "if name not in _NAMES:",
        "if not name:",
        HOSTILE + "test_sec_1_no_code_in_what_torch_saves_runs",
    ),
    mutant(
        "SEC-1: a storage is as large as it says",
        CLAIMS,
        "self.unused.pop(key, None) != count * _ITEM[kind.name]:",
        "self.unused.pop(key, None) is None:",
        WORDS,
    ),
    mutant(
        "SEC-1: strides may go beyond the storage",
        CLAIMS,
        " or (count and reach > count):",
        ":",
        WORDS,
    ),
    mutant(
        "SEC-1: a shape may be larger than the storage",
        CLAIMS,
        "if offset or count * kinds[kind] != storage.size or",
        "if offset or",
        WORDS,
    ),
    mutant(
        "SEC-1: there is no end to nesting",
        CLAIMS,
        "        if not all(_are_sizes(x) for x in made if type(x) is tuple):",
        "        if len(made) > 1 << 30:",
        WORDS,
    ),
    mutant(
        "SEC-1: entries may be compressed",
        LAYOUT,
        "if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:",
        "if entry.file_size < 0:",
        WORDS,
    ),
    mutant(
        "SEC-1: a name may occur twice in a zip",
        LAYOUT,
        "if len(set(names)) != len(names) or not",
        "if not",
        WATCHED,
    ),
    mutant(
        "SEC-1: entries may have any name",
        LAYOUT,
        "or not all(map(_NAMES.fullmatch, names)) or",
        "or",
        WORDS,
    ),
    mutant(
        "SEC-1: a zip may be read differently by another program",
        LAYOUT,
        "(_END_MARK, 0, 0, count) or start + length != end:",
        "(_END_MARK, 0, 0, count):",
        WORDS,
    ),
    mutant(
        "checkpoint: shapes and dtypes are not compared",
        "checkpoint/fitting.py",
        "if describe(found) != describe(wanted):",
        "if type(found) is not type(wanted):",
        MISFITS + "test_each_misfit_names_the_first_leaf",
    ),
    mutant(
        "export: tied weights are written twice",
        EXPORTING,
        "        if memory not in seen:\n",
        "        if memory is not None:\n",
        EXPORT + "test_ckpt_10_tied_weights_are_exported_once_and_stay_tied",
    ),
    mutant(
        "export: written in place of the old file",
        EXPORTING,
        "with replacing(target, check) as file:",
        'with open(target, "wb") as file:',
        EXPORT + "test_ckpt_2_an_export_that_fails_leaves_the_old_file",
    ),
    mutant(
        "export: the mean of gradients passes for that of the parameters",
        EXPORTING,
        ' and (*p[:-1], "count") not in everything]',
        "]",
        EXPORT + "test_the_averaged_weights_are_those_of_params_ema_and_of_no_other_mean",
    ),
    mutant(
        "export: a name that begins with a digit keeps its mark",
        EXPORTING,
        'return re.sub(r"\\\\(.)", r"\\1", piece, flags=re.DOTALL)',
        'return piece.replace(r"\\.", ".")',
        EXPORT + "test_the_names_in_a_key_are_those_it_was_made_of",
    ),
    mutant(
        "show: what a file says moves the cursor",
        "checkpoint/showing.py",
        "c if c.isprintable() else c.encode",
        "c if c else c.encode",
        COMMAND + "test_show_prints_what_is_in_a_file",
    ),
    mutant(
        "verify: the exit status is 0 where a file is damaged",
        "checkpoint/__main__.py",
        '{reason(error, file)}", flush=True)\n                status = 1\n',
        '{reason(error, file)}", flush=True)\n',
        COMMAND + "test_verify_prints_a_line_a_file_and_its_status_says_whether_all_are_whole",
    ),
)
