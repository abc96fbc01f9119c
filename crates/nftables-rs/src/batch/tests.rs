use super::*;
use crate::expression::Expression;
use crate::{Data, Verdict};
use netlink::Refusal;
use proptest::prelude::*;

const TABLE: TableName<'static> = TableName::new(Family::Ipv6, "t");

fn refused(index: usize, offset: Option<u32>) -> netlink::Refused {
    netlink::Refused { index, refusal: Refusal { errno: libc::EEXIST, message: None, offset } }
}

fn all(batch: &Batch) -> Vec<Message<'_>> {
    Messages::new(batch.as_bytes()).map(Result::unwrap).collect()
}

/// Elements of many lengths, in two lists.
fn two_lists() -> Batch {
    let mut batch = Batch::new();
    batch.add_table(&Table::new(TABLE));
    let mut list = batch.add_elements(TABLE, "first");
    for number in 0..5_u32 {
        let comment = "x".repeat(number as usize);
        list.push(&Element { comment: Some(&comment), ..Element::new(&number.to_ne_bytes()) });
    }
    let mut list = batch.delete_elements(TABLE, "second");
    for number in 0..3_000_u32 {
        let key = number.to_ne_bytes();
        let data =
            if number % 2 == 0 { Data::Value(&key) } else { Data::Verdict(Verdict::Goto("somewhere")) };
        list.push(&Element { data: Some(data), ..Element::new(&key) });
    }
    batch
}

#[test]
fn lists_are_cut_into_messages_that_an_attribute_can_hold() {
    let batch = two_lists();
    let messages = all(&batch);
    assert!(messages.len() >= 4);
    let of_second = messages.iter().filter(|message| message.kind == message::DELETE_ELEMENTS);
    let lengths: Vec<usize> = of_second.map(|message| message.payload.len()).collect();
    assert!(lengths.iter().all(|len| *len <= MOST_BYTES_OF_ELEMENTS), "{lengths:?}");
    assert!(lengths[0] > MOST_BYTES_OF_ELEMENTS - 200, "no message is small without need");
    let in_messages = messages.iter().filter_map(|message| Some(list(message, elements::LIST)?.count()));
    assert_eq!(in_messages.sum::<usize>(), 3_005);
    assert_eq!(batch.elements(), 3_005);
}

#[test]
fn a_list_without_elements_writes_nothing() {
    let mut batch = Batch::new();
    let _ = batch.add_elements(TABLE, "set");
    assert!(batch.is_empty());
}

#[test]
fn each_offset_names_its_element() {
    let batch = two_lists();
    let mut element = 0;
    for (index, message) in all(&batch).iter().enumerate() {
        for (start, end, _) in list(message, elements::LIST).into_iter().flatten() {
            for offset in [start, start + 4, end - 1] {
                let offset = u32::try_from(offset).unwrap();
                let named = batch.name_refused(vec![refused(index, Some(offset))]);
                assert_eq!(named[0].element, Some(element));
            }
            element += 1;
        }
    }
    assert_eq!(element, batch.elements());
}

#[test]
fn a_refusal_of_no_element_names_the_set() {
    let batch = two_lists();
    for offset in [None, Some(0), Some(20), Some(u32::MAX)] {
        let named = batch.name_refused(vec![refused(1, offset)]);
        assert_eq!(named[0].element, None, "{offset:?}");
        let text = "cannot add elements to set first of table ip6 t: File exists (os error 17)";
        assert_eq!(named[0].to_string(), text);
    }
}

#[test]
fn all_refusals_are_named_in_order() {
    let batch = two_lists();
    let messages = all(&batch).len();
    let named = batch.name_refused((0..messages).map(|index| refused(index, None)).collect());
    assert_eq!(
        named.iter().map(|refused| refused.request).collect::<Vec<_>>(),
        (0..messages).collect::<Vec<_>>()
    );
    assert_eq!(named[0].operation, Some(Operation::AddTable));
    assert_eq!(named[2].operation, Some(Operation::DeleteElements));
}

#[test]
fn a_refused_rule_names_its_expression() {
    let mut batch = Batch::new();
    let expressions = &[Expression::COUNTER, Expression::Other { name: "perceive", data: &[] }];
    batch.add_rule(&Rule { table: TABLE, chain: "c", expressions, comment: None });
    let second = list(&all(&batch)[0], rule::EXPRESSIONS).unwrap().nth(1).unwrap().0;
    let named = batch.name_refused(vec![refused(0, u32::try_from(second).ok())]);
    assert_eq!(named[0].expression.as_deref(), Some("perceive"));
    assert_eq!((&*named[0].table, &*named[0].object), ("ip6 t", "c"));
}

#[test]
fn a_batch_that_was_cleared_counts_from_zero() {
    let mut batch = two_lists();
    batch.clear();
    assert_eq!((batch.len(), batch.elements(), batch.is_empty()), (0, 0, true));
}

proptest! {
    #[test]
    fn no_refusal_panics(index in 0_usize..20, offset in proptest::option::of(any::<u32>())) {
        let batch = two_lists();
        let named = batch.name_refused(vec![refused(index, offset)]);
        prop_assert!(named.len() <= 1);
    }
}
