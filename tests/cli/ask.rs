//! `ask` on the book that comes with lookback.

use crate::files::{Folder, asset, lookback, stderr, stdout};

#[test]
fn ask_answers_from_the_book() {
    let book = asset("phonebook.txt");
    let text = std::fs::read_to_string(&book).expect("the book");
    let (name, number) = text.lines().filter(|l| !l.starts_with('#')).find_map(|l| l.rsplit_once(' ')).expect("a line");
    let done = lookback(&["ask", book.to_str().expect("utf-8"), name]);
    assert!(done.status.success(), "{}", stderr(&done));
    assert!(stdout(&done).contains(name) && stdout(&done).contains(number), "{}", stdout(&done));
    assert!(stdout(&done).contains("device: "), "{}", stdout(&done));
}

#[test]
fn ask_about_everybody_reports_both_readings() {
    let book = asset("phonebook.txt");
    let done = lookback(&["ask", book.to_str().expect("utf-8")]);
    assert!(done.status.success(), "{}", stderr(&done));
    let text = stdout(&done);
    for words in ["read both ways", "forward only", "tokens/s", "device: "] {
        assert!(text.contains(words), "`{words}` is not in\n{text}");
    }
}

#[test]
fn ask_with_a_bad_book_or_name_is_one_line() {
    let folder = Folder::new("books");
    let book = asset("phonebook.txt");
    let bad = folder.path("bad.txt");
    std::fs::write(&bad, "Ada 1234\nGrace 12x4\n").expect("file");
    let empty = folder.path("empty.txt");
    std::fs::write(&empty, "\n").expect("file");
    let absent = folder.path("absent.txt");
    let cases: [(&[&str], &str); 4] = [
        (&["ask", bad.to_str().expect("utf-8")], "line 2"),
        (&["ask", empty.to_str().expect("utf-8")], "no entries"),
        (&["ask", absent.to_str().expect("utf-8")], "absent.txt"),
        (&["ask", book.to_str().expect("utf-8"), "Nobody At All"], "Nobody At All"),
    ];
    for (args, says) in cases {
        let done = lookback(args);
        let text = stderr(&done);
        assert_eq!(done.status.code(), Some(2), "{args:?}: {text}");
        assert!(text.contains(says), "{text}");
        assert_eq!(text.lines().filter(|l| !l.starts_with("device: ")).count(), 1, "{text}");
    }
}

#[test]
fn a_byte_order_mark_and_carriage_returns_are_not_part_of_names() {
    let folder = Folder::new("windows");
    let book = folder.path("book.txt");
    std::fs::write(&book, "\u{feff}Ada Lovelace 1815\r\nGrace 1906\r\n").expect("file");
    let done = lookback(&["ask", book.to_str().expect("utf-8"), "Ada Lovelace"]);
    assert!(done.status.success(), "{}", stderr(&done));
    assert!(stdout(&done).contains("1815"), "{}", stdout(&done));
}

#[test]
fn whether_a_given_model_only_reads_forward_is_not_asked() {
    let (book, model) = (asset("phonebook.txt"), asset("phonebook.safetensors"));
    let (book, model) = (book.to_str().expect("utf-8"), model.to_str().expect("utf-8"));
    let done = lookback(&["ask", book, "--causal", "--model", model]);
    assert_eq!(done.status.code(), Some(2), "{}", stdout(&done));
}
